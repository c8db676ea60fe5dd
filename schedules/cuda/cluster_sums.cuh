// Blocks of a cluster that split K (wgmma): they send each other parts of their sums, and each finishes a share of the tile.
//
// A thread has the same rows and positions in every block, so sums need no place of their own in the tile: the thread that
// finishes a number gets the parts of its namesakes, 16 bytes at a time, and adds them in the order of the blocks.
#pragma once
#include "cluster.cuh"
#include "store_rows.cuh"

namespace sp {

// sums[TILES][COUNT] of THREADS threads of each of PARTS blocks: of TILES times 64 rows, COUNT / 4 tiles of eight positions.
// They are shared in units of four such tiles of one row. `parts`: kBytes of shared memory, where nothing may be on its
// way any more when send() is called; `arrived`: a barrier.
template <int PARTS, int TILES, int COUNT, int THREADS>
struct ClusterSums {
  static constexpr int kUnits = TILES * COUNT / 8, kShare = kUnits / PARTS;
  static constexpr int kBytes = PARTS > 1 ? kUnits * THREADS * 32 : 0;
  static_assert(COUNT % 16 == 0 && kUnits % PARTS == 0, "blocks cannot have equal shares");
  float* const parts;
  Mbarrier* const arrived;
  const int rank;

  __device__ __forceinline__ ClusterSums(char* shared, Mbarrier* bar)
      : parts(reinterpret_cast<float*>(shared)), arrived(bar), rank(PARTS > 1 ? cluster_rank() : 0) {}

  // One thread, before a barrier of the block.
  __device__ __forceinline__ void start() const {
    if constexpr (PARTS > 1) {
      barrier_init(arrived, 1);
      barriers_ready();
      barrier_expect(arrived, (PARTS - 1) * kShare * THREADS * 32);
    }
  }
  // All threads of the block, those without sums too, when they are done with shared memory.
  static __device__ __forceinline__ void meet() {
    if constexpr (PARTS > 1) {
      cluster_arrive();
      cluster_wait();
    }
  }
  // Where the parts that block `from` sends lie: [kShare][2][THREADS] times 16 bytes.
  static constexpr __device__ int place(int from, int unit, int thread) {
    return ((from * kShare + unit % kShare) * 2 * THREADS + thread) * 4;
  }
  static constexpr __device__ int at(int unit, int n) {
    return unit / 2 % (COUNT / 16) * 16 + 4 * n + unit % 2 * 2;
  }
  static constexpr __device__ int tile(int unit) { return unit / (COUNT / 8); }

  // Behind meet(): sends what other blocks finish.
  __device__ __forceinline__ void send(const float (&sums)[TILES][COUNT], int thread) const {
#pragma unroll
    for (int to = 0; to < PARTS; to++) {
      if (PARTS == 1 || to == rank) continue;
      const RemoteStore there = remote_store(parts, arrived, to);
#pragma unroll
      for (int unit = to * kShare; unit < (to + 1) * kShare; unit++) {
        const float* const of = sums[tile(unit)];
#pragma unroll
        for (int n = 0; n < 4; n += 2) {
          const float four[4] = {of[at(unit, n)], of[at(unit, n) + 1], of[at(unit, n + 1)], of[at(unit, n + 1) + 1]};
          there.store<4>(place(rank, unit, thread) + n / 2 * THREADS * 4, four);
        }
      }
    }
  }
  // Calls f(tile of rows, half, first tile of positions, sum) for each unit that this block finishes: of rows half * 8 + g
  // of a warp's 16, four tiles of positions; sum(j, e) as store_row wants it.
  template <typename F>
  __device__ __forceinline__ void finish(const float (&sums)[TILES][COUNT], int thread, F f) const {
    if constexpr (PARTS > 1) barrier_wait(arrived, 0);
#pragma unroll
    for (int unit = 0; unit < kUnits; unit++) {
      if (PARTS > 1 && unit / kShare != rank) continue;
      float all[8] = {};
#pragma unroll
      for (int from = 0; from < PARTS; from++) {
        if (PARTS == 1 || from == rank) {
#pragma unroll
          for (int n = 0; n < 8; n++) all[n] += sums[tile(unit)][at(unit, n / 2) + n % 2];
        } else {
#pragma unroll
          for (int n = 0; n < 8; n += 4) {
            const float4 part = *reinterpret_cast<const float4*>(parts + place(from, unit, thread) + n * THREADS);
            all[n] += part.x, all[n + 1] += part.y, all[n + 2] += part.z, all[n + 3] += part.w;
          }
        }
      }
      f(tile(unit), unit % 2, unit / 2 % (COUNT / 16) * 4, [&](int j, int e) { return all[2 * j + e]; });
    }
  }
};

}  // namespace sp
