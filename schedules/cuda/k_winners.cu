// The k largest values of each row stay, all others become zero: a block for each row.
//
// Keys are unsigned integers in the order of the floats. One pass counts the values in bins of equal width between the
// least and the largest one; few share the bin that has the k-th largest, and these are ranked one against the other. Where
// that does not work (a range that is not finite, too many in one bin), the k-th largest is found from its highest byte on:
// four times, the keys that begin like it are counted by their next byte. Counts are whole numbers, so the order of
// threads does not matter. NaN counts as the largest value and stays NaN; the two zeros are equal.
//   SP_THREADS: of a block, a power of two. SP_KEEP: values of a thread that stay in registers (0: they are read again).
//   SP_FIRST: of values equal to the k-th, only those with the lowest index stay, k in all; else all of them.
//   SP_X_PLANES, SP_Y_PLANES: a row is an image in planes there, of which SP_STRIDE, SP_ORIGIN, SP_PITCH, SP_HEIGHT and
//   SP_WIDTH are the sizes (core/layout.py), the same on both sides; else it is plain.
#include "reduce.cuh"

constexpr int kThreads = SP_THREADS, kWarps = kThreads / 32, kKeep = SP_KEEP;
constexpr int kBins = kThreads < 64 ? 256 : 4 * kThreads, kEach = kBins / kThreads;
constexpr int kList = 128;  // values that are ranked one against the other
constexpr unsigned kZero = 0x80000000u;
static_assert(kBins >= 256 && kBins % kThreads == 0 && kEach % 4 == 0, "no such block");

__device__ __forceinline__ unsigned key_of(float v) {
  const unsigned bits = __float_as_uint(v + 0.0f);  // of -0 those of 0
  const unsigned key = bits ^ (static_cast<unsigned>(static_cast<int>(bits) >> 31) | kZero);
  return v != v ? ~0u : key;
}
__device__ __forceinline__ float value_of(unsigned key) { return __uint_as_float(key & kZero ? key ^ kZero : ~key); }

// Where value p of a row lies: of images, everything in its planes has a number, and what is no pixel is not real.
struct Place {
  bool real;
  int x, y;
};
__device__ __forceinline__ Place place(int p, int n) {
#if SP_X_PLANES || SP_Y_PLANES
  const int plane = p / SP_STRIDE, at = p % SP_STRIDE - SP_ORIGIN, row = at / SP_PITCH, column = at % SP_PITCH;
  const bool real = p < n && at >= 0 && row < SP_HEIGHT && column < SP_WIDTH;
  const int plain = (plane * SP_HEIGHT + row) * SP_WIDTH + column;
  return {real, SP_X_PLANES ? p : plain, SP_Y_PLANES ? p : plain};
#else
  return {p < n, p, p};
#endif
}

// Values number thread, thread + kThreads, ... of a row.
struct Row {
  const float* x;
  int n;
  unsigned real;
  float kept[kKeep > 0 ? kKeep : 1];

  __device__ __forceinline__ Row(const float* row, int size) : x(row), n(size), real(0) {
#pragma unroll
    for (int j = 0; j < kKeep; j++) {
      const Place at = place(j * kThreads + int(threadIdx.x), n);
      kept[j] = at.real ? x[at.x] : 0.0f;
      real |= static_cast<unsigned>(at.real) << j;
    }
  }
  // Calls f(number, whether there is one, value, key) for each, by all threads equally often.
  template <typename F>
  __device__ __forceinline__ void each(F f) const {
    if constexpr (kKeep > 0) {
#pragma unroll
      for (int j = 0; j < kKeep; j++) f(j * kThreads + int(threadIdx.x), real >> j & 1, kept[j], key_of(kept[j]));
    } else {
      again(f);
    }
  }
  // The same from memory: ways that are rare shall take neither registers nor much code, which is fetched anew each time.
  template <typename F>
  __device__ __forceinline__ void again(F f) const {
#pragma unroll 1
    for (int first = 0; first < n; first += 4 * kThreads) {
      float v[4];
      bool there[4];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const Place at = place(first + i * kThreads + int(threadIdx.x), n);
        there[i] = at.real;
        v[i] = at.real ? x[at.x] : 0.0f;
      }
#pragma unroll
      for (int i = 0; i < 4; i++) f(first + i * kThreads + int(threadIdx.x), there[i], v[i], key_of(v[i]));
    }
  }
  __device__ __forceinline__ void store(float* y, int p, bool is_real, float value) const {
    if (SP_Y_PLANES ? p < n : is_real) y[place(p, n).y] = value;
  }
};

struct Shared {
  int bins[kBins];  // first of all: read in fours
  unsigned list[kList];
  unsigned least[kWarps], most[kWarps];
  int totals[kWarps];
  int chosen, left, listed, equal;
  unsigned kth;
};

// Finds the bin that has the value number `left` from the largest down: its number to shared.chosen, how many of its own
// are wanted to shared.left. All threads; bins are complete, and there are at least `left` values.
__device__ __forceinline__ void choose(Shared& shared, int left) {
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  int mine[kEach], sum = 0;
#pragma unroll
  for (int i = 0; i < kEach; i += 4) {
    const int4 four = *reinterpret_cast<const int4*>(shared.bins + thread * kEach + i);
    mine[i] = four.x, mine[i + 1] = four.y, mine[i + 2] = four.z, mine[i + 3] = four.w;
    sum += four.x + four.y + four.z + four.w;
  }
  int reached = sum;  // of this lane and those above it
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int other = __shfl_down_sync(~0u, reached, step);
    if (lane + step < 32) reached += other;
  }
  if (lane == 0) shared.totals[warp] = reached;
  __syncthreads();
  const int above = sp::lane_total(lane < kWarps && lane > warp ? shared.totals[lane] : 0) + reached - sum;
  if (above < left && left <= above + sum) {
    int before = above, found = -1;
#pragma unroll
    for (int i = kEach - 1; i >= 0; i--)
      if (found < 0) {
        if (before + mine[i] >= left)
          found = i;
        else
          before += mine[i];
      }
    shared.chosen = thread * kEach + found, shared.left = left - before;
  }
  __syncthreads();
}

// The k-th largest key to shared.kth, how many equal to it stay to shared.left, and how many there are to shared.equal, by
// bins of equal width; false where that does not find it.
__device__ __forceinline__ bool by_value(const Row& row, Shared& shared, int k) {
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  unsigned least = ~0u, most = 0;
  row.each([&](int, bool real, float, unsigned key) {
    if (real) least = min(least, key), most = max(most, key);
  });
  least = sp::lane_least(least), most = sp::lane_most(most);
  if (lane == 0) shared.least[warp] = least, shared.most[warp] = most;
  __syncthreads();
  least = sp::lane_least(lane < kWarps ? shared.least[lane] : ~0u);
  most = sp::lane_most(lane < kWarps ? shared.most[lane] : 0u);
  const float low = value_of(least), scale = sp::about_quotient(kBins - 1, value_of(most) - low);
  // Neither of the two is infinite or NaN, nor is their difference, or too small or large for a quotient.
  if (!(scale > 0.0f && scale < INFINITY) || !(fabsf(low) < INFINITY)) return false;

  // Differences and products are rounded, but what is larger never becomes smaller.
  const auto bin_of = [&](float v) { return min(static_cast<int>((v - low) * scale), kBins - 1); };
  row.each([&](int, bool real, float v, unsigned) {
    if (real) atomicAdd(shared.bins + bin_of(v), 1);
  });
  __syncthreads();
  choose(shared, k);
  const int chosen = shared.chosen, left = shared.left, count = shared.bins[chosen];
  if (count > kList) return false;
  row.each([&](int, bool real, float v, unsigned key) {
    if (real && bin_of(v) == chosen) shared.list[atomicAdd(&shared.listed, 1)] = key;
  });
  __syncthreads();
  for (int i = thread; i < count; i += kThreads) {
    const unsigned key = shared.list[i];
    int above = 0, equal = 0;
    for (int other = 0; other < count; other++) {
      above += shared.list[other] > key;
      equal += shared.list[other] == key;
    }
    // All whose key it is write the same.
    if (above < left && left <= above + equal) shared.kth = key, shared.left = left - above, shared.equal = equal;
  }
  __syncthreads();
  return true;
}

// The same byte by byte, which always finds it.
__device__ __forceinline__ void by_bytes(const Row& row, Shared& shared, int k) {
  unsigned kth = 0, known = 0;  // its upper bytes, and which these are
  int left = k;                 // how many of the keys that begin like it are among the k largest
#pragma unroll 1
  for (int shift = 24; shift >= 0; shift -= 8) {
    __syncthreads();
    for (int b = threadIdx.x; b < kBins; b += kThreads) shared.bins[b] = 0;
    __syncthreads();
    row.again([&](int, bool real, float, unsigned key) {
      if (real && (key & known) == kth) atomicAdd(shared.bins + (key >> shift & 255), 1);
    });
    __syncthreads();
    choose(shared, left);
    kth |= static_cast<unsigned>(shared.chosen) << shift, known |= 255u << shift;
    left = shared.left;
  }
  if (threadIdx.x == 0) shared.kth = kth, shared.equal = shared.bins[kth & 255];
  __syncthreads();
}

// n: values of a row, of images also what is between and around pixels; x_row, y_row: floats from row to row.
extern "C" __global__ void __launch_bounds__(kThreads)
    k_winners(const float* __restrict__ x, float* __restrict__ y, int n, int k, int x_row, int y_row) {
  __shared__ __align__(16) Shared shared;
  __shared__ int equal_before[kWarps];
  sp::start_next();
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  for (int b = thread; b < kBins; b += kThreads) shared.bins[b] = 0;
  if (thread == 0) shared.listed = 0;
  x = sp::wait_for_previous(x) + static_cast<size_t>(blockIdx.x) * x_row;
  y += static_cast<size_t>(blockIdx.x) * y_row;
  const Row row(x, n);
  if (!by_value(row, shared, k)) by_bytes(row, shared, k);
  const unsigned kth = shared.kth;
  const int left = shared.left;

  // Where it is zero, what stays and what does not are both zero.
  const bool tied = SP_FIRST && kth != kZero && shared.equal > left;
  if (!tied) {
    row.each([&](int p, bool real, float v, unsigned key) { row.store(y, p, real, real && key >= kth ? v : 0.0f); });
    return;
  }
  int before = 0;  // equal ones with a lower index, of all threads
  row.again([&](int p, bool real, float v, unsigned key) {
    const bool equal = real && key == kth;
    const unsigned here = __ballot_sync(~0u, equal);
    __syncthreads();
    if (lane == 0) equal_before[warp] = __popc(here);
    __syncthreads();
    int at = before + __popc(here & ((1u << lane) - 1));
    for (int w = 0; w < kWarps; w++) {
      if (w < warp) at += equal_before[w];
      before += equal_before[w];
    }
    row.store(y, p, real, real && (key > kth || (equal && at < left)) ? v : 0.0f);
  });
}
