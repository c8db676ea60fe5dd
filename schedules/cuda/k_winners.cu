// The k largest values of each row stay, all others become zero: a block for each row.
//
// Keys are unsigned integers in the order of the floats; the k-th largest is found from its highest byte on: four times,
// the keys that begin like it are counted by their next byte. Counts are whole numbers, so the order of threads does not
// matter. NaN counts as the largest value and stays NaN; the two zeros are equal.
//   SP_THREADS: of a block. SP_KEEP: values of a thread that stay in registers (0: they are read again each time).
//   SP_FIRST: of values equal to the k-th, only those with the lowest index stay, k in all; else all of them.
#include "device.cuh"

constexpr int kThreads = SP_THREADS, kWarps = kThreads / 32, kKeep = SP_KEEP;
constexpr unsigned kZero = 0x80000000u;

__device__ __forceinline__ unsigned key_of(float v) {
  if (v != v) return ~0u;
  if (v == 0.0f) return kZero;
  const unsigned bits = __float_as_uint(v);
  return bits & kZero ? ~bits : bits | kZero;
}

// Values number thread, thread + kThreads, ... of a row.
struct Row {
  const float* x;
  int n;
  float kept[kKeep > 0 ? kKeep : 1];

  __device__ __forceinline__ Row(const float* row, int size) : x(row), n(size) {
#pragma unroll
    for (int j = 0; j < kKeep; j++) {
      const int i = j * kThreads + int(threadIdx.x);
      kept[j] = i < n ? x[i] : 0.0f;
    }
  }
  // Calls f(index, value) for each; index >= n where there is none, so that all threads call it equally often.
  template <typename F>
  __device__ __forceinline__ void each(F f) const {
    if constexpr (kKeep > 0) {
#pragma unroll
      for (int j = 0; j < kKeep; j++) f(j * kThreads + int(threadIdx.x), kept[j]);
    } else {
      for (int first = 0; first < n; first += kThreads) {
        const int i = first + int(threadIdx.x);
        f(i, i < n ? x[i] : 0.0f);
      }
    }
  }
};

extern "C" __global__ void __launch_bounds__(kThreads)
    k_winners(const float* __restrict__ x, float* __restrict__ y, int n, int k) {
  __shared__ int bins[256], chosen[2], equal_before[kWarps];
  sp::start_next();
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  x = sp::wait_for_previous(x) + static_cast<size_t>(blockIdx.x) * n;
  y += static_cast<size_t>(blockIdx.x) * n;
  const Row row(x, n);

  unsigned kth = 0, known = 0;  // its upper bytes, and which these are
  int left = k;                 // how many of the keys that begin like it are among the k largest
#pragma unroll
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int b = thread; b < 256; b += kThreads) bins[b] = 0;
    __syncthreads();
    row.each([&](int i, float v) {
      const unsigned key = key_of(v);
      if (i < n && (key & known) == kth) atomicAdd(bins + (key >> shift & 255), 1);
    });
    __syncthreads();
    if (warp == 0) {
      // A lane has eight bytes; `above`: keys whose byte is larger than all of these.
      int mine = 0;
      for (int b = 0; b < 8; b++) mine += bins[8 * lane + b];
      int reached = mine;
      for (int step = 1; step < 32; step *= 2) {
        const int other = __shfl_down_sync(~0u, reached, step);
        if (lane + step < 32) reached += other;
      }
      int above = reached - mine;
      if (above < left && left <= reached) {
        int b = 8 * lane + 7;
        while (above + bins[b] < left) above += bins[b--];
        chosen[0] = b, chosen[1] = left - above;
      }
    }
    __syncthreads();
    kth |= static_cast<unsigned>(chosen[0]) << shift, known |= 255u << shift;
    left = chosen[1];
  }

  // Where it is zero, what stays and what does not are both zero.
  const bool tied = SP_FIRST && kth != kZero && bins[kth & 255] > left;
  if (!tied) {
    row.each([&](int i, float v) {
      if (i < n) y[i] = key_of(v) >= kth ? v : 0.0f;
    });
    return;
  }
  int before = 0;  // equal ones with a lower index, of all threads
  row.each([&](int i, float v) {
    const unsigned key = key_of(v);
    const bool equal = i < n && key == kth;
    const unsigned here = __ballot_sync(~0u, equal);
    __syncthreads();
    if (lane == 0) equal_before[warp] = __popc(here);
    __syncthreads();
    int at = before + __popc(here & ((1u << lane) - 1));
    for (int w = 0; w < kWarps; w++) {
      if (w < warp) at += equal_before[w];
      before += equal_before[w];
    }
    if (i < n) y[i] = key > kth || (equal && at < left) ? v : 0.0f;
  });
}
