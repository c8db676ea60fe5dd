// Product with SP_TOKENS tokens: SP_SPLIT warps read SP_ROWS rows of W once and all of X.
//   SP_UNROLL: 16-byte loads of a row in flight. SP_ALIGNED 1: k is a multiple of 4, rows of X are 16-byte aligned.
#include "epilogue.cuh"
#include "reduce.cuh"

constexpr int kTokens = SP_TOKENS, kRows = SP_ROWS, kSplit = SP_SPLIT, kUnroll = SP_UNROLL, kWarps = 8;
constexpr int kGroups = kWarps / kSplit;  // of warps with rows of their own

// Four values of X from `at` on; zeros past k.
__device__ __forceinline__ float4 read_x(const float* x, int at, int k) {
#if SP_ALIGNED
  (void)k;
  return *reinterpret_cast<const float4*>(x + at);
#else
  return make_float4(x[at], at + 1 < k ? x[at + 1] : 0.0f, at + 2 < k ? x[at + 2] : 0.0f, at + 3 < k ? x[at + 3] : 0.0f);
#endif
}

// x: [kTokens][k], w: [m][stride] with zeros from k on, y and residual: [kTokens][m].
extern "C" __global__ void __launch_bounds__(32 * kWarps)
    dense_gemv(const float* __restrict__ x, SP_RESIDUAL_PARAMETER const float* __restrict__ w,
               const float* __restrict__ bias, float* __restrict__ y, int m, int k, int stride) {
  sp::start_next();
  x = sp::wait_for_previous(x);
  __shared__ float parts[kSplit][kTokens][kGroups * kRows];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = warp / kSplit, share = warp % kSplit;
  const int block_row = blockIdx.x * (kGroups * kRows), row0 = block_row + group * kRows;
  float sums[kRows][kTokens];
#pragma unroll
  for (int r = 0; r < kRows; r++)
#pragma unroll
    for (int t = 0; t < kTokens; t++) sums[r][t] = 0.0f;

  constexpr int kStep = 128 * kSplit;
  for (int start = 128 * share + 4 * lane; start < k; start += kStep * kUnroll) {
    float4 weights[kUnroll][kRows];
#pragma unroll
    for (int u = 0; u < kUnroll; u++)
#pragma unroll
      for (int r = 0; r < kRows; r++)
        weights[u][r] = start + u * kStep < k
                            ? sp::load_once4(w + static_cast<size_t>(min(row0 + r, m - 1)) * stride + start + u * kStep)
                            : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
    for (int u = 0; u < kUnroll; u++) {
      if (start + u * kStep >= k) break;
#pragma unroll
      for (int t = 0; t < kTokens; t++) {
        const float4 v = read_x(x + static_cast<size_t>(t) * k, start + u * kStep, k);
#pragma unroll
        for (int r = 0; r < kRows; r++) {
          const float4 a = weights[u][r];
          sums[r][t] = fmaf(a.w, v.w, fmaf(a.z, v.z, fmaf(a.y, v.y, fmaf(a.x, v.x, sums[r][t]))));
        }
      }
    }
  }

#pragma unroll
  for (int t = 0; t < kTokens; t++)
#pragma unroll
    for (int r = 0; r < kRows; r++) {
      const float sum = sp::lane_sum<32>(sums[r][t]);
      if (lane == 0) parts[share][t][group * kRows + r] = sum;
    }
  __syncthreads();
  for (int e = threadIdx.x; e < kTokens * kGroups * kRows; e += 32 * kWarps) {
    const int t = e / (kGroups * kRows), r = e % (kGroups * kRows), row = block_row + r;
    if (row >= m) continue;
    float sum = bias[row];
#pragma unroll
    for (int s = 0; s < kSplit; s++) sum += parts[s][t][r];
    const size_t at = static_cast<size_t>(t) * m + row;
#if SP_RESIDUAL
    sum += sp::written_before(residual)[at];
#endif
    y[at] = sp::activate(sum);
  }
}
