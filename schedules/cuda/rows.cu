// Layer norm and softmax: a group of SP_THREADS threads goes over the features of SP_TOKENS neighbouring tokens.
//   SP_KEEP: values that a thread keeps in registers; 0: they are read again for every pass.
//   SP_BLOCK: threads of a block; groups share one when they are warps (SP_THREADS 32).
//   SP_CLUSTER: blocks that share the features of the same tokens (layer norm only).
//   SP_EPSILON: makes it a layer norm; SP_CENTRED 0: an RMS norm, with 0 for the mean.
#include "reduce.cuh"

constexpr int kThreads = SP_THREADS, kTokens = SP_TOKENS, kKeep = SP_KEEP, kStep = kThreads / kTokens;
constexpr int kBlocks = SP_CLUSTER, kGroups = SP_BLOCK / kThreads, kKept = kKeep > 0 ? kKeep : 1;
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

// Calls body(feature, value) for all features of this thread; with SP_KEEP the values stay in `kept`.
#define SP_EACH(feature, value, body)                                       \
  if (kKeep > 0) {                                                          \
    _Pragma("unroll") for (int i = 0; i < kKept; i++) {                     \
      const int feature = first + i * kStep;                                \
      if (feature >= count) break;                                          \
      float& value = kept[i];                                               \
      body                                                                  \
    }                                                                       \
  } else {                                                                  \
    for (int feature = first; feature < count; feature += kStep) {          \
      float value = x[static_cast<size_t>(feature) * stride];               \
      body                                                                  \
    }                                                                       \
  }

// Sets x and y to features [FROM, FROM + COUNT) of this thread's token: token t of its tile of `lanes` lies at t, features
// `stride` apart.
#define SP_TOKEN(tokens, FROM, COUNT)                                                                      \
  const int group = blockIdx.x / kBlocks * kGroups + threadIdx.x / kThreads, tid = threadIdx.x % kThreads; \
  const int token = group * kTokens + tid % kTokens, first = tid / kTokens, count = COUNT;                 \
  if (kGroups > 1 && token >= tokens) return;                                                              \
  const size_t start = stride == 1 ? static_cast<size_t>(token) * n                                        \
                                   : static_cast<size_t>(token / stride) * stride * n + token % stride;    \
  x += start + static_cast<size_t>(FROM) * stride;                                                         \
  y += start + static_cast<size_t>(FROM) * stride;                                                         \
  float kept[kKept];                                                                                       \
  if (kKeep > 0) {                                                                                         \
    _Pragma("unroll") for (int i = 0; i < kKept; i++)                                                      \
      kept[i] = first + i * kStep < count ? x[static_cast<size_t>(first + i * kStep) * stride] : 0.0f;     \
  }

#ifdef SP_EPSILON
// (x - mean) / sqrt(variance + epsilon) * gamma + beta; two passes for the variance. The blocks of a cluster have `share`
// features each, whose means and squares they combine as Chan, Golub and LeVeque do.
extern "C" __global__ void SP_CLUSTER_DIMS __launch_bounds__(SP_BLOCK)
    layer_norm(const float* __restrict__ x, const float* __restrict__ gamma, const float* __restrict__ beta,
               float* __restrict__ y, int tokens, int n, int stride, int share) {
  sp::start_next();
  x = sp::wait_for_previous(x);
#if SP_CLUSTER > 1
  SP_DYNAMIC_SHARED(float, moments);  // [kTokens][4]: mean, sum of squares, features
  float(*scratch)[kTokens] = reinterpret_cast<float(*)[kTokens]>(moments + 4 * kTokens);
#else
  __shared__ float scratch[kThreads / 32][kTokens];
#endif
  const int begin = kBlocks > 1 ? sp::cluster_rank() * share : 0, all = n;
  SP_TOKEN(tokens, begin, kBlocks > 1 ? min(share, all - begin) : all)
  gamma += begin, beta += begin;
  float scales[kKept], shifts[kKept];  // on their way while sums are made
  if (kKeep > 0) {
#pragma unroll
    for (int i = 0; i < kKeep; i++) {
      const int f = first + i * kStep;
      scales[i] = f < count ? gamma[f] : 0.0f, shifts[i] = f < count ? beta[f] : 0.0f;
    }
  }
  float mean = 0.0f;
#if SP_CENTRED
  SP_EACH(f, v, { mean += v; })
  mean = reduce<false>(mean, scratch) / static_cast<float>(count);
#endif
  float squares = 0.0f;
  SP_EACH(f, v, {
    const float d = v - mean;
    squares = fmaf(d, d, squares);
  })
  squares = reduce<false>(squares, scratch);
#if SP_CLUSTER > 1
  if (tid < kTokens)
    *reinterpret_cast<float4*>(moments + 4 * tid) = make_float4(mean, squares, static_cast<float>(count), 0.0f);
  sp::cluster_sync();
  float4 parts[kBlocks];
#pragma unroll
  for (int b = 0; b < kBlocks; b++) parts[b] = sp::cluster_load4(moments + 4 * (tid % kTokens), b);
  mean = squares = 0.0f;
#pragma unroll
  for (int b = 0; b < kBlocks; b++) mean = fmaf(parts[b].x, parts[b].z, mean);
  mean /= static_cast<float>(all);
#pragma unroll
  for (int b = 0; b < kBlocks; b++) {
    const float d = parts[b].x - mean;
    squares += fmaf(d * d, parts[b].z, parts[b].y);
  }
#endif
  const float scale = 1.0f / sqrtf(squares / static_cast<float>(all) + static_cast<float>(SP_EPSILON));
  SP_EACH(f, v, {
    const int at = kKeep > 0 ? (f - first) / kStep : 0;  // known when the loop is unrolled
    const float a = kKeep > 0 ? scales[at] : gamma[f];
    const float b = kKeep > 0 ? shifts[at] : beta[f];
    y[static_cast<size_t>(f) * stride] = fmaf((v - mean) * scale, a, b);
  })
#if SP_CLUSTER > 1
  sp::cluster_sync();  // until all have read this block's moments
#endif
}
#else
// exp(v - max) / sum of them, v = SP_SCALE * x + mask. Rows lie in three axes, outermost first, of which the two inner ones
// have `size1` and `size2` entries; step*: floats of the mask from an entry to the next (0: it has only one).
//   SP_MASK 0 | 1
extern "C" __global__ void __launch_bounds__(SP_BLOCK)
    softmax(const float* __restrict__ x,
#if SP_MASK
            const float* __restrict__ mask,
#endif
            float* __restrict__ y, int tokens, int n, int stride, int size1, int size2, int step0, int step1, int step2) {
  sp::start_next();
  x = sp::wait_for_previous(x);
#if SP_MASK
  mask = sp::wait_for_previous(mask);
#endif
  __shared__ float scratch[kThreads / 32][kTokens];
  SP_TOKEN(tokens, 0, n)
#if SP_MASK
  mask += static_cast<size_t>(token / (size1 * size2)) * step0 + static_cast<size_t>(token / size2 % size1) * step1 +
          static_cast<size_t>(token % size2) * step2;
#define SP_ADDED(f) mask[f]
#else
  (void)size1, (void)size2, (void)step0, (void)step1, (void)step2;
#define SP_ADDED(f) 0.0f
#endif
#define SP_SCORE(f, v) fmaf(v, static_cast<float>(SP_SCALE), SP_ADDED(f))
  float largest = -INFINITY;
  SP_EACH(f, v, {
    v = SP_SCORE(f, v);  // stays in `kept`
    largest = fmaxf(largest, v);
  })
  largest = reduce<true>(largest, scratch);
  float sum = 0.0f;
  SP_EACH(f, v, {
    v = expf((kKeep > 0 ? v : SP_SCORE(f, v)) - largest);
    sum += v;
  })
  const float inverse = 1.0f / reduce<false>(sum, scratch);
  SP_EACH(f, v, { y[static_cast<size_t>(f) * stride] = (kKeep > 0 ? v : expf(SP_SCORE(f, v) - largest)) * inverse; })
}
#endif
