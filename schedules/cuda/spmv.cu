// Y = X W^T for SP_N = 1..8 tokens, X [n][k] and Y [n][m] row-major: LPR lanes walk a row of W, X lies in shared memory.
//
// A lane takes four entries at a time: 16 bytes of values and four 16-bit columns (32-bit: SP_WIDE); where all values are
// float16 (SP_HALF), 16 bytes hold both. The order of a row's entries is such that lanes which read X together mostly hit
// different banks. Rows are sorted by length and dealt to blocks one warp's worth at a time, so that blocks are even and
// the rows of a warp alike.
//
// Entries do not depend on the kernel before this one: those of the first SP_AHEAD steps are on their way to registers
// while it still runs. Where no row has more steps (SP_ONCE), all that is left to do after it is to copy X, multiply and
// add. So registers should leave room for the blocks of two kernels (SP_RESIDENT).
// Macros: SP_N, SP_LPR, SP_WARPS, SP_AHEAD (steps in flight), SP_ONCE, SP_RESIDENT (blocks of a multiprocessor that
// registers must allow), SP_STAGED (X in shared memory), SP_BYTES (columns are byte offsets there), SP_WIDE, SP_HALF;
// epilogue.cuh's.
#include "epilogue.cuh"
#include "streams.cuh"

constexpr bool ONCE = SP_ONCE;
constexpr int N = SP_N, LPR = SP_LPR, WARPS = SP_WARPS, AHEAD = SP_AHEAD;
constexpr int THREADS = WARPS * 32, WARP_ROWS = 32 / LPR;
constexpr int V = N == 1 ? 1 : N == 2 ? 2 : 4;  // tokens of one read of X
constexpr int PLANES = (N + V - 1) / V;
static_assert(N >= 1 && N <= 8 && WARP_ROWS * LPR == 32, "no such shape");

// Four values and columns, as they are read. With SP_HALF the values' register has both.
#if SP_HALF
typedef uint4 Values;
#define SP_ENTRIES const uint4* __restrict__ values
#elif SP_WIDE
typedef float4 Values;
typedef uint4 Columns;
#else
typedef float4 Values;
typedef uint2 Columns;
#endif
#if !SP_HALF
#define SP_ENTRIES const float4* __restrict__ values, const Columns* __restrict__ columns
#endif

__device__ __forceinline__ void two(unsigned both, int& a, int& b) { a = both & 0xffff, b = both >> 16; }

extern "C" __global__ void __launch_bounds__(THREADS, SP_RESIDENT) spmv(
    const float* __restrict__ x, SP_RESIDUAL_PARAMETER SP_ENTRIES, const int* __restrict__ starts,
    const int* __restrict__ rows, const float* __restrict__ bias, float* __restrict__ y, int m, int k) {
  sp::start_next();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, place = lane % LPR;
  const int at = (warp * gridDim.x + blockIdx.x) * WARP_ROWS + lane / LPR;
  const bool live = at < m;
  const int begin = live ? starts[at] : 0, end = live ? starts[at + 1] : 0;

  Values w[AHEAD];
#if !SP_HALF
  Columns c[AHEAD];
#endif
  [[maybe_unused]] auto read = [&](int slot, int step) {
    const bool inside = step < end;
    w[slot] = inside ? __ldg(values + size_t(step) * LPR + place) : Values{};
#if !SP_HALF
    c[slot] = inside ? __ldg(columns + size_t(step) * LPR + place) : Columns{};
#endif
  };
#pragma unroll
  for (int i = 0; i < AHEAD; i++) {
    w[i] = Values{};
#if !SP_HALF
    c[i] = Columns{};
#endif
    if (begin + i < end) {
      w[i] = sp::early(values + size_t(begin + i) * LPR + place);
#if !SP_HALF
      c[i] = sp::early(columns + size_t(begin + i) * LPR + place);
#endif
    }
  }
  const int row = live ? sp::early(rows + at) : 0;
  const float start = live ? sp::early(bias + at) : 0.0f;
#if SP_STAGED
  x = N == 1 ? sp::wait_for_copies(x) : sp::wait_for_previous(x);
#else
  x = sp::wait_for_previous(x);
#endif
#if SP_RESIDUAL
  residual = sp::wait_for_previous(residual);
#endif

#if SP_STAGED
  SP_DYNAMIC_SHARED(float, shared);  // [plane of V tokens][k][V]
  if constexpr (N == 1) {
    const int whole = k / 4 * 4, rest = whole + int(threadIdx.x);
    for (int i = 4 * int(threadIdx.x); i < whole; i += 4 * THREADS) sp::copy16(shared + i, x + i);
    if (rest < k) sp::copy4(shared + rest, x + rest);
    sp::copy_commit();
    sp::copy_wait<0>();
  } else {
#pragma unroll 2
    for (int i = threadIdx.x; i < k; i += THREADS)
#pragma unroll
      for (int p = 0; p < PLANES; p++) {
        float v[4] = {};
#pragma unroll
        for (int n = p * V; n < min(p * V + V, N); n++) v[n - p * V] = x[n * k + i];
        float* const to = shared + (p * k + i) * V;
        if constexpr (V == 4)
          *reinterpret_cast<float4*>(to) = make_float4(v[0], v[1], v[2], v[3]);
        else
          *reinterpret_cast<float2*>(to) = make_float2(v[0], v[1]);
      }
  }
  __syncthreads();
#endif
  auto read_x = [&](int column, float (&out)[PLANES * V]) {
#if SP_STAGED
#pragma unroll
    for (int p = 0; p < PLANES; p++) {
#if SP_BYTES
      const float* from = reinterpret_cast<const float*>(reinterpret_cast<const char*>(shared + p * k * V) + column);
#else
      const float* from = shared + (p * k + column) * V;
#endif
      if constexpr (V == 4) {
        const float4 v = *reinterpret_cast<const float4*>(from);
        out[p * V] = v.x, out[p * V + 1] = v.y, out[p * V + 2] = v.z, out[p * V + 3] = v.w;
      } else if constexpr (V == 2) {
        const float2 v = *reinterpret_cast<const float2*>(from);
        out[0] = v.x, out[1] = v.y;
      } else {
        out[0] = *from;
      }
    }
#else
#pragma unroll
    for (int n = 0; n < N; n++) out[n] = x[n * k + column];
#endif
  };

  float acc[N] = {};
  for (int step = begin; step < end; step += AHEAD) {
#pragma unroll
    for (int i = 0; i < AHEAD; i++) {
      if (step + i >= end) break;
      float weights[4];
      int from[4];
#if SP_HALF
      two(w[i].z, from[0], from[1]), two(w[i].w, from[2], from[3]);
      sp::halves_to_floats(w[i].x, weights[0], weights[1]), sp::halves_to_floats(w[i].y, weights[2], weights[3]);
#else
      weights[0] = w[i].x, weights[1] = w[i].y, weights[2] = w[i].z, weights[3] = w[i].w;
#if SP_WIDE
      from[0] = c[i].x, from[1] = c[i].y, from[2] = c[i].z, from[3] = c[i].w;
#else
      two(c[i].x, from[0], from[1]), two(c[i].y, from[2], from[3]);
#endif
#endif
      if constexpr (!ONCE) read(i, step + AHEAD + i);
#pragma unroll
      for (int j = 0; j < 4; j++) {
        float values_of_x[PLANES * V];
        read_x(from[j], values_of_x);
#pragma unroll
        for (int n = 0; n < N; n++) acc[n] = fmaf(weights[j], values_of_x[n], acc[n]);
      }
    }
    if constexpr (ONCE) break;
  }
#pragma unroll
  for (int s = LPR / 2; s; s /= 2)
#pragma unroll
    for (int n = 0; n < N; n++) acc[n] += __shfl_xor_sync(~0u, acc[n], s);
  if (!live) return;
#pragma unroll
  for (int n = 0; n < N; n++)
    if (place == n % LPR) {
      float out = acc[n] + start;
#if SP_RESIDUAL
      out += residual[n * m + row];
#endif
      y[n * m + row] = sp::activate(out);
    }
}
