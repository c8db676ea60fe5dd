// Pooling: a thread for every output, zeros around images included; global pooling: a warp or a block for every plane.
//   SP_MAX 1: maximum, 0: average.
#include "reduce.cuh"

constexpr float kIdentity = SP_MAX ? -INFINITY : 0.0f;
__device__ __forceinline__ float combine(float a, float b) { return SP_MAX ? fmaxf(a, b) : a + b; }

#ifdef SP_KH
// Y: pixel (0, 0) of plane p lies at p * y_plane + y0, `outside` floats of a plane are in no row; X alike.
// include_pad 1: the average counts the padding, up to the pads (bottom, right) below and right of the image.
extern "C" __global__ void __launch_bounds__(128)
    pooling(const float* __restrict__ x, float* __restrict__ y, int count, int in_height, int in_width, int x_plane, int x0,
            int x_pitch, int y_plane, int y0, int y_pitch, int height, int width, int outside, int top, int left,
            int include_pad) {
  sp::start_next();
  x = sp::wait_for_previous(x);
  const int e = blockIdx.x * 128 + threadIdx.x;
  if (e >= count) return;
  const int grid = height * y_pitch, work = grid + outside, plane = e / work, at = e % work;
  y += static_cast<size_t>(plane) * y_plane;
  const int row = at / y_pitch, column = at % y_pitch;
  if (at >= grid || column >= width) {
    const int border = at - grid;
    y[at < grid ? y0 + at : border < y0 ? border : border + grid] = 0.0f;
    return;
  }
  x += static_cast<size_t>(plane) * x_plane + x0;
  float value = kIdentity;
  int pixels = 0;
#pragma unroll
  for (int ky = 0; ky < SP_KH; ky++)
#pragma unroll
    for (int kx = 0; kx < SP_KW; kx++) {
      const int r = row * SP_SY - top + ky * SP_DY, c = column * SP_SX - left + kx * SP_DX;
      if (r >= 0 && r < in_height && c >= 0 && c < in_width) {
        value = combine(value, x[static_cast<size_t>(r) * x_pitch + c]);
        pixels++;
      }
    }
  if (!SP_MAX) value *= 1.0f / static_cast<float>(include_pad ? SP_KH * SP_KW : pixels);
  y[y0 + at] = value;
}
#else
// y[plane]: all pixels of a plane combined by SP_WARPS warps.
extern "C" __global__ void __launch_bounds__(128)
    global_pooling(const float* __restrict__ x, float* __restrict__ y, int planes, int x_plane, int x0, int x_pitch,
                   int height, int width) {
  sp::start_next();
  x = sp::wait_for_previous(x);
  constexpr int kThreads = 32 * SP_WARPS;
  const int plane = blockIdx.x * (128 / kThreads) + threadIdx.x / kThreads, tid = threadIdx.x % kThreads;
  float value = kIdentity;
  if (plane < planes) {
    x += static_cast<size_t>(plane) * x_plane + x0;
    for (int at = tid; at < height * x_pitch; at += kThreads)
      if (at % x_pitch < width) value = combine(value, x[at]);
  }
#if SP_WARPS == 1
  value = SP_MAX ? sp::lane_max<32>(value) : sp::lane_sum<32>(value);
#else
  __shared__ float scratch[SP_WARPS];
  value = SP_MAX ? sp::block_max<SP_WARPS>(value, scratch) : sp::block_sum<SP_WARPS>(value, scratch);
#endif
  if (plane < planes && tid == 0) y[plane] = SP_MAX ? value : value * (1.0f / static_cast<float>(height * width));
}
#endif
