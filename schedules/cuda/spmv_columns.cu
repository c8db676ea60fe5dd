// Y = X W^T for few tokens with many zeros: of W only the columns of non-zero activations are read.
//
// A block has SP_ROWS rows of one token. It lists the non-zero activations (NaN counts), in fixed order; then each thread
// takes one after the other of these, reads what its rows have in that column (32 bytes that lie where the column's number
// says: no look-up; formats/column_slots.py) and adds to sums of its own in shared memory, one for each row. At the end
// warps add those up. So sums are in an order that depends on which activations are zero, and on nothing else.
//
// All of it is waiting: for X, for slots, seldom for further slots. So a block looks at all of X at once, a thread has the
// slots of four columns on their way, and sums are few, so that blocks of the kernel before and after find room.
//   SP_THREADS: of a block. SP_LOOK: columns that a thread looks at in a round, a multiple of 4. SP_FOURS 1: K is one, too.
//   SP_WIDE: columns have 32 bits, else 16.
//   SP_RESIDENT: blocks of a multiprocessor that registers must allow.
#include "epilogue.cuh"
#include "reduce.cuh"
#include "streams.cuh"

constexpr int kRows = SP_ROWS, kThreads = SP_THREADS, kLook = SP_LOOK;
constexpr int kWarps = kThreads / 32, kRound = kThreads * kLook;
constexpr int kEntries = 6, kTogether = 4;  // of a slot; columns that a thread has on their way
static_assert(kRows <= 64 && kThreads % 128 == 0 && kLook % 4 == 0, "no such shape");

#if SP_WIDE
using Column = int;
#else
using Column = unsigned short;
#endif

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
  return {__ldg(from), __ldg(from + 1)};  // one sector: past L1 it would be read twice
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
  float* const sums = shared;                                          // [kRows][kThreads]
  int* const found = reinterpret_cast<int*>(sums + kRows * kThreads);  // by each warp
  Column* const active = reinterpret_cast<Column*>(found + kWarps);    // of this round
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
    int mine = 0;
#pragma unroll
    for (int i = 0; i < kLook; i += 4) {
      const int column = base + (i / 4 * kThreads + thread) * 4;
#if SP_FOURS
      const bool inside = column < k;
      const float4 four = inside ? *reinterpret_cast<const float4*>(x + column) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      v[i] = four.x, v[i + 1] = four.y, v[i + 2] = four.z, v[i + 3] = four.w;
#else
#pragma unroll
      for (int n = 0; n < 4; n++) v[i + n] = column + n < k ? x[column + n] : 0.0f;
#endif
    }
#pragma unroll
    for (int i = 0; i < kLook; i++) mine += v[i] != 0.0f;
    int at = mine;  // of this lane and those before it
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int before = __shfl_up_sync(~0u, at, step);
      if (lane >= step) at += before;
    }
    if (lane == 31) found[warp] = at;
    __syncthreads();
    const int of_warp = lane < kWarps ? found[lane] : 0, all = sp::lane_total(of_warp);
    at += sp::lane_total(lane < warp ? of_warp : 0) - mine;
#pragma unroll
    for (int i = 0; i < kLook; i++)
      if (v[i] != 0.0f) active[at++] = static_cast<Column>(base + (i / 4 * kThreads + thread) * 4 + i % 4);
    __syncthreads();
    for (int e = thread; e < all; e += kTogether * kThreads) {
      float value[kTogether];
      Slot slot[kTogether];
#pragma unroll
      for (int i = 0; i < kTogether; i++) {
        const bool real = e + i * kThreads < all;
        const int column = real ? active[e + i * kThreads] : 0;
        value[i] = x[column];  // from L1, which has all of X by now
        slot[i] = real ? read_slot(slots, column) : Slot{};
      }
      for (bool more = true; more;) {
        more = false;
#pragma unroll
        for (int i = 0; i < kTogether; i++) {
          add(sums + thread, slot[i], value[i]);
          more |= slot[i].next() != 0;
        }
        if (!more) break;
        // Further slots of all columns are on their way at once.
#pragma unroll
        for (int i = 0; i < kTogether; i++) {
          const int next = slot[i].next();
          slot[i] = next ? read_slot(slots, k - 1 + next) : Slot{};
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
