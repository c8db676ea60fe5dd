// A ring of stages in shared memory: one warp starts copies of X and W to a stage, the other warps multiply what lies
// there while those of the next stages are on their way (Hopper).
//
//   writer: sp::Turn<STAGES> turn{0, 1};            reader: sp::Turn<STAGES> turn{0, 0};
//     ring.wait_empty(turn);                          ring.wait_full(turn);
//     one lane: ring.expect(turn, bytes), copies      ... ring.x(turn), ring.w(turn) ...
//     turn.next();                                    one thread of each reader: ring.release(turn), turn.next();
#pragma once
#include "wgmma.cuh"

namespace sp {

// The stage that it is a thread's turn to use, and the parity of the phase that it waits for there. Stages are empty at
// first, so writers begin with a parity that no phase has had.
template <int STAGES>
struct Turn {
  int stage, parity;
  __device__ __forceinline__ void next() {
    if (++stage == STAGES) stage = 0, parity ^= 1;
  }
};

// Dynamic shared memory of at least kBytes: boxes of X (X bytes of a stage) where their swizzle wants them, W (W bytes),
// barriers that say that a stage is full, barriers that say that it is empty. Behind these is what a kernel adds.
template <int STAGES, int X, int W>
struct Ring {
  static constexpr int kAlignment = 1024, kBytes = kAlignment + STAGES * (X + W + 2 * static_cast<int>(sizeof(Mbarrier)));
  static_assert(X % kAlignment == 0, "boxes are swizzled by their addresses");
  using Turn = sp::Turn<STAGES>;

  char* const boxes;
  char* const tiles;
  Mbarrier* const full;
  Mbarrier* const empty;

  __device__ __forceinline__ explicit Ring(char* shared)
      : boxes(shared + (kAlignment - shared_address(shared) % kAlignment) % kAlignment),
        tiles(boxes + STAGES * X),
        full(reinterpret_cast<Mbarrier*>(tiles + STAGES * W)),
        empty(full + STAGES) {}

  // Makes the barriers; all threads of the block. readers: how many release a stage.
  __device__ __forceinline__ void start(int readers) const {
    if (threadIdx.x == 0) {
      for (int s = 0; s < STAGES; s++) {
        barrier_init(full + s, 1);
        barrier_init(empty + s, readers);
      }
      barriers_ready();
    }
    __syncthreads();
  }

  __device__ __forceinline__ char* x(const Turn& turn) const { return boxes + turn.stage * X; }
  __device__ __forceinline__ char* w(const Turn& turn) const { return tiles + turn.stage * W; }

  __device__ __forceinline__ void wait_empty(const Turn& turn) const { barrier_wait(empty + turn.stage, turn.parity); }
  __device__ __forceinline__ void wait_full(const Turn& turn) const { barrier_wait(full + turn.stage, turn.parity); }
  __device__ __forceinline__ void release(const Turn& turn) const { barrier_arrive(empty + turn.stage); }

  // Of the one lane that copies: how many bytes make the stage full; rows k, k + 1, ... of COUNT boxes side by side, from
  // position n on; bytes of W.
  __device__ __forceinline__ void expect(const Turn& turn, int bytes) const { barrier_expect(full + turn.stage, bytes); }
  template <int COUNT, int BOX>
  __device__ __forceinline__ void copy_x(const Turn& turn, int at, const TensorMap* map, int n, int k) const {
    for (int column = 0; column < COUNT; column++)
      sp::copy_box(x(turn) + at + column * BOX, map, n + 64 * column, k, full + turn.stage);
  }
  __device__ __forceinline__ void copy_w(const Turn& turn, int at, const char* from, int bytes) const {
    sp::bulk_copy(w(turn) + at, from, bytes, full + turn.stage);
  }
};

}  // namespace sp
