// Sums, products and activations of whole buffers, four floats per thread.
//   SP_OP 0: X0 alone, 1: X0 + X1, 2: X0 * X1, 3: X0 times X1[plane], 4: X0 times X1[channel] plus X2[channel].
//   SP_PLANES 1: what is no pixel of Planes becomes zero.
#include "positions.cuh"

#if SP_OP == 4
#define SP_SECOND const float* __restrict__ x1, const float* __restrict__ x2,
#elif SP_OP
#define SP_SECOND const float* __restrict__ x1,
#else
#define SP_SECOND
#endif

__device__ __forceinline__ float joined(float a, float b) {
#if SP_OP == 1
  return a + b;
#elif SP_OP >= 2
  return a * b;
#else
  (void)b;
  return a;
#endif
}

extern "C" __global__ void __launch_bounds__(128)
    elementwise(const float* __restrict__ x0, SP_SECOND float* __restrict__ y, int count, int plane, int origin, int pitch,
                int width, int valid, int channels) {
  sp::start_next();
  x0 = sp::wait_for_previous(x0);
#if SP_OP
  x1 = sp::wait_for_previous(x1);
#endif
  const int at = (blockIdx.x * 128 + threadIdx.x) * 4;
  if (at >= count) return;
  unsigned real = 15;
#if SP_PLANES
  const int p = at % plane - origin;  // origin and plane are multiples of 4
  real = p >= 0 ? sp::pixels<4>(p, pitch, width, valid) : 0;
#else
  (void)plane, (void)origin, (void)pitch, (void)width, (void)valid;
#endif
#if SP_OP == 4
  int channel = at / plane % channels, left = plane - at % plane;  // floats to the next channel
  float v[4];
#pragma unroll
  for (int i = 0; i < 4; i++) {
    v[i] = at + i < count ? fmaf(x0[at + i], x1[channel], x2[channel]) : 0.0f;
    if (--left == 0) channel = channel + 1 == channels ? 0 : channel + 1, left = plane;
  }
  const float4 four = sp::finish4(make_float4(v[0], v[1], v[2], v[3]), real);
  if (at + 4 <= count) {
    *reinterpret_cast<float4*>(y + at) = four;
  } else {
    const float last[4] = {four.x, four.y, four.z, four.w};
    for (int i = 0; at + i < count; i++) y[at + i] = last[i];
  }
#else
  (void)channels;
  if (at + 4 <= count) {
    const float4 a = *reinterpret_cast<const float4*>(x0 + at);
#if SP_OP == 3
    const float factor = x1[at / plane];
    const float4 b = make_float4(factor, factor, factor, factor);
#elif SP_OP
    const float4 b = *reinterpret_cast<const float4*>(x1 + at);
#else
    const float4 b = a;
#endif
    const float4 v = make_float4(joined(a.x, b.x), joined(a.y, b.y), joined(a.z, b.z), joined(a.w, b.w));
    *reinterpret_cast<float4*>(y + at) = sp::finish4(v, real);
    return;
  }
  for (int i = at; i < count; i++) {
#if SP_OP == 3
    y[i] = sp::activate(joined(x0[i], x1[i / plane]));
#elif SP_OP
    y[i] = sp::activate(joined(x0[i], x1[i]));
#else
    y[i] = sp::activate(x0[i]);
#endif
  }
#endif
}
