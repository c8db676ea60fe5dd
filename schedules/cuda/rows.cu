// Layer norm and softmax: a group of SP_THREADS threads goes over the features of SP_TOKENS neighbouring tokens.
//   SP_KEEP: values that a thread keeps in registers; 0: they are read again for every pass.
//   SP_BLOCK: threads of a block; groups share one when they are warps (SP_THREADS 32).
#include "reduce.cuh"

constexpr int kThreads = SP_THREADS, kTokens = SP_TOKENS, kKeep = SP_KEEP, kStep = kThreads / kTokens;
constexpr int kGroups = SP_BLOCK / kThreads;
static_assert(kGroups == 1 || kThreads == 32, "groups in one block have no barrier of their own");

// Over all threads of the group with the same token, in all of them. Lanes with equal token lie kTokens apart.
template <bool MAX>
__device__ __forceinline__ float reduce(float v, float (*scratch)[kTokens]) {
#pragma unroll
  for (int step = 16; step >= kTokens; step /= 2) {
    const float other = __shfl_xor_sync(0xffffffffu, v, step);
    v = MAX ? fmaxf(v, other) : v + other;
  }
  if (kThreads == 32) return v;
  __syncthreads();
  if (threadIdx.x % 32 < kTokens) scratch[threadIdx.x / 32][threadIdx.x % 32] = v;
  __syncthreads();
  v = scratch[0][threadIdx.x % kTokens];
#pragma unroll
  for (int w = 1; w < kThreads / 32; w++) {
    const float other = scratch[w][threadIdx.x % kTokens];
    v = MAX ? fmaxf(v, other) : v + other;
  }
  return v;
}

// Calls body(feature, value, i) for all features of this thread; with SP_KEEP the values stay in `kept`.
#define SP_EACH(feature, value, body)                                       \
  if (kKeep > 0) {                                                          \
    _Pragma("unroll") for (int i = 0; i < kKeep; i++) {                     \
      const int feature = first + i * kStep;                                \
      if (feature >= n) break;                                              \
      float& value = kept[i];                                               \
      body                                                                  \
    }                                                                       \
  } else {                                                                  \
    for (int feature = first; feature < n; feature += kStep) {              \
      float value = x[static_cast<size_t>(feature) * stride];               \
      body                                                                  \
    }                                                                       \
  }

// Sets x and y to this thread's token: token t of its tile of `lanes` lies at t, features `stride` apart.
#define SP_TOKEN(tokens)                                                                        \
  const int group = blockIdx.x * kGroups + threadIdx.x / kThreads, tid = threadIdx.x % kThreads; \
  const int token = group * kTokens + tid % kTokens, first = tid / kTokens;                     \
  if (kGroups > 1 && token >= tokens) return;                                                   \
  const size_t start = static_cast<size_t>(token / stride) * stride * n + token % stride;       \
  x += stride == 1 ? static_cast<size_t>(token) * n : start;                                    \
  y += stride == 1 ? static_cast<size_t>(token) * n : start;                                    \
  float kept[kKeep > 0 ? kKeep : 1];                                                            \
  if (kKeep > 0) {                                                                              \
    _Pragma("unroll") for (int i = 0; i < kKeep; i++)                                           \
      kept[i] = first + i * kStep < n ? x[static_cast<size_t>(first + i * kStep) * stride] : 0.0f; \
  }

#ifdef SP_EPSILON
// (x - mean) / sqrt(variance + epsilon) * gamma + beta; two passes for the variance.
extern "C" __global__ void __launch_bounds__(SP_BLOCK)
    layer_norm(const float* __restrict__ x, const float* __restrict__ gamma, const float* __restrict__ beta,
               float* __restrict__ y, int tokens, int n, int stride) {
  __shared__ float scratch[(kThreads + 31) / 32][kTokens];
  SP_TOKEN(tokens)
  float sum = 0.0f;
  SP_EACH(f, v, { sum += v; })
  const float mean = reduce<false>(sum, scratch) / static_cast<float>(n);
  float squares = 0.0f;
  SP_EACH(f, v, {
    const float d = v - mean;
    squares = fmaf(d, d, squares);
  })
  const float variance = reduce<false>(squares, scratch) / static_cast<float>(n);
  const float scale = 1.0f / sqrtf(variance + static_cast<float>(SP_EPSILON));
  SP_EACH(f, v, { y[static_cast<size_t>(f) * stride] = fmaf((v - mean) * scale, gamma[f], beta[f]); })
}
#else
// exp(x - max) / sum of them.
extern "C" __global__ void __launch_bounds__(SP_BLOCK)
    softmax(const float* __restrict__ x, float* __restrict__ y, int tokens, int n, int stride) {
  __shared__ float scratch[(kThreads + 31) / 32][kTokens];
  SP_TOKEN(tokens)
  float largest = -INFINITY;
  SP_EACH(f, v, { largest = fmaxf(largest, v); })
  largest = reduce<true>(largest, scratch);
  float sum = 0.0f;
  SP_EACH(f, v, {
    v = expf(v - largest);
    sum += v;
  })
  const float inverse = 1.0f / reduce<false>(sum, scratch);
  SP_EACH(f, v, { y[static_cast<size_t>(f) * stride] = (kKeep > 0 ? v : expf(v - largest)) * inverse; })
}
#endif
