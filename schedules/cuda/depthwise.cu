// Depthwise convolution: lanes run along the columns of a plane, a thread computes SP_OUT outputs one below the other.
//   SP_KH, SP_KW, SP_SY, SP_SX, SP_DY, SP_DX: kernel, stride, dilation.
#include "epilogue.cuh"

// The work of a plane: `blocks` of SP_OUT output rows x y_pitch columns, then y_outside floats around the image.
// X: pixel (0, 0) of plane p lies at p * x_plane + x0; top, left: pads. Y alike, and the residual.
extern "C" __global__ void __launch_bounds__(128)
    depthwise(const float* __restrict__ x, SP_RESIDUAL_PARAMETER const float* __restrict__ w,
              const float* __restrict__ bias, float* __restrict__ y, int count, int channels, int top, int left,
              int x_plane, int x0, int x_pitch, int y_plane, int y0, int y_pitch, int height, int width, int outside) {
  sp::start_next();
  x = sp::wait_for_previous(x);
#if SP_RESIDUAL
  residual = sp::wait_for_previous(residual);
#endif
  const int e = blockIdx.x * 128 + threadIdx.x;
  if (e >= count) return;
  const int blocks = height / SP_OUT, work = blocks * y_pitch + outside, plane = e / work, at = e % work;
  y += static_cast<size_t>(plane) * y_plane;
  if (at >= blocks * y_pitch) {
    const int border = at - blocks * y_pitch;
    y[border < y0 ? border : border + height * y_pitch] = 0.0f;
    return;
  }
  const int row = at / y_pitch * SP_OUT, column = at % y_pitch;
  const size_t out = static_cast<size_t>(y0) + row * y_pitch + column;
  if (column >= width) {
#pragma unroll
    for (int r = 0; r < SP_OUT; r++) y[out + r * y_pitch] = 0.0f;
    return;
  }
  const int channel = plane % channels;
  w += channel * (SP_KH * SP_KW);
  x += static_cast<size_t>(plane) * x_plane + x0 + (row * SP_SY - top) * x_pitch + column * SP_SX - left;
  float sums[SP_OUT];
#pragma unroll
  for (int r = 0; r < SP_OUT; r++) sums[r] = bias[channel];
#pragma unroll
  for (int ky = 0; ky < SP_KH; ky++)
#pragma unroll
    for (int kx = 0; kx < SP_KW; kx++) {
      const float weight = w[ky * SP_KW + kx];
      // Rows that several outputs read are loaded once: equal addresses of unrolled loops.
#pragma unroll
      for (int r = 0; r < SP_OUT; r++)
        sums[r] = fmaf(weight, x[(r * SP_SY + ky * SP_DY) * x_pitch + kx * SP_DX], sums[r]);
    }
#pragma unroll
  for (int r = 0; r < SP_OUT; r++) {
#if SP_RESIDUAL
    sums[r] += residual[static_cast<size_t>(plane) * y_plane + out + r * y_pitch];
#endif
    y[out + r * y_pitch] = sp::activate(sums[r]);
  }
}
