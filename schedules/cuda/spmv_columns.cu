// Y = X W^T for few tokens with many zeros: of W only the columns of non-zero activations are read.
//
// A block has SP_ROWS rows of one token. It lists the non-zero activations (NaN counts), in fixed order; then each thread
// takes one of these after the other, reads what its rows have in that column (32 bytes that lie where the column's number
// says: no look-up; formats/column_slots.py) and adds to sums of its own in shared memory, one for each row. At the end
// warps add those up. So sums are in an order that depends on which activations are zero, and on nothing else.
//   SP_THREADS: of a block. SP_LOOK: columns that a thread looks at in a round. SP_RESIDENT: blocks of a multiprocessor.
#include "epilogue.cuh"
#include "reduce.cuh"
#include "streams.cuh"

constexpr int kRows = SP_ROWS, kThreads = SP_THREADS, kLook = SP_LOOK;
constexpr int kWarps = kThreads / 32, kRound = kThreads * kLook;
constexpr int kEntries = 6, kTogether = 2;  // columns that a thread has on their way
static_assert(kRows <= 64 && kThreads % 128 == 0, "no such shape");

struct Active {
  int column;
  float value;
};

struct Slot {
  uint4 low, high;
  __device__ __forceinline__ float weight(int i) const {
    return __uint_as_float(i == 0 ? low.x : i == 1 ? low.y : i == 2 ? low.z : i == 3 ? low.w : i == 4 ? high.x : high.y);
  }
  __device__ __forceinline__ int row(int i) const { return (i == 5 ? high.w : high.z >> (6 * i)) & 63; }
  __device__ __forceinline__ int count() const { return high.w >> 6 & 7; }
  __device__ __forceinline__ int next() const { return high.w >> 9; }
};

__device__ __forceinline__ Slot read_slot(const uint4* slots, int number) {
  const uint4* const from = slots + 2 * static_cast<size_t>(number);
  return {sp::stream4(from), sp::stream4(from + 1)};
}

// sums: of this thread, kThreads apart. Rows of a slot differ, so all sums can be read before any is written.
__device__ __forceinline__ void add(float* sums, const Slot& slot, float value) {
  const int count = slot.count();
  float v[kEntries];
#pragma unroll
  for (int i = 0; i < kEntries; i++)
    if (i < count) v[i] = fmaf(slot.weight(i), value, sums[slot.row(i) * kThreads]);
#pragma unroll
  for (int i = 0; i < kEntries; i++)
    if (i < count) sums[slot.row(i) * kThreads] = v[i];
}

extern "C" __global__ void __launch_bounds__(kThreads, SP_RESIDENT)
    spmv_columns(const float* __restrict__ x, SP_RESIDUAL_PARAMETER const uint4* __restrict__ slots,
                 const int* __restrict__ first, const float* __restrict__ bias, float* __restrict__ y, int m, int k) {
  sp::start_next();
  SP_DYNAMIC_SHARED(float, shared);
  float* const sums = shared;                                       // [kRows][kThreads]
  Active* const active = reinterpret_cast<Active*>(sums + kRows * kThreads);
  int* const found = reinterpret_cast<int*>(active + kRound);       // by each warp
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32, row0 = blockIdx.x * kRows;
#pragma unroll 8
  for (int r = 0; r < kRows; r++) sums[r * kThreads + thread] = 0.0f;
  slots += 2 * static_cast<size_t>(sp::early(first + blockIdx.x));
  x = sp::wait_for_previous(x) + static_cast<size_t>(blockIdx.y) * k;
#if SP_RESIDUAL
  residual = sp::wait_for_previous(residual);
#endif

  for (int base = 0; base < k; base += kRound) {
    float v[kLook];
    unsigned here[kLook];
    int total = 0;
#pragma unroll
    for (int i = 0; i < kLook; i++) {
      const int column = base + i * kThreads + thread;
      v[i] = column < k ? x[column] : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kLook; i++) {
      here[i] = __ballot_sync(~0u, v[i] != 0.0f);
      total += __popc(here[i]);
    }
    if (lane == 0) found[warp] = total;
    __syncthreads();
    int at = 0, all = 0;
#pragma unroll
    for (int w = 0; w < kWarps; w++) {
      if (w < warp) at += found[w];
      all += found[w];
    }
#pragma unroll
    for (int i = 0; i < kLook; i++) {
      if (v[i] != 0.0f) active[at + __popc(here[i] & ((1u << lane) - 1))] = {base + i * kThreads + thread, v[i]};
      at += __popc(here[i]);
    }
    __syncthreads();
    for (int e = thread; e < all; e += kTogether * kThreads) {
      Active mine[kTogether] = {};
      Slot slot[kTogether] = {};
#pragma unroll
      for (int i = 0; i < kTogether; i++)
        if (e + i * kThreads < all) {
          mine[i] = active[e + i * kThreads];
          slot[i] = read_slot(slots, mine[i].column);
        }
#pragma unroll
      for (int i = 0; i < kTogether; i++) {
        add(sums + thread, slot[i], mine[i].value);
        while (const int next = slot[i].next()) {
          slot[i] = read_slot(slots, k - 1 + next);
          add(sums + thread, slot[i], mine[i].value);
        }
      }
    }
  }
  __syncthreads();

#pragma unroll
  for (int r = warp; r < kRows; r += kWarps) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kThreads / 128; i++) {
      const float4 v = *reinterpret_cast<const float4*>(sums + r * kThreads + 128 * i + 4 * lane);
      sum += (v.x + v.y) + (v.z + v.w);
    }
    sum = sp::lane_sum<32>(sum);
    const int row = row0 + r;
    if (lane == 0 && row < m) {
      sum += bias[row];
#if SP_RESIDUAL
      sum += residual[static_cast<size_t>(blockIdx.y) * m + row];
#endif
      y[static_cast<size_t>(blockIdx.y) * m + row] = sp::activate(sum);
    }
  }
}
