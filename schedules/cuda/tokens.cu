// Images in planes become tokens in one tile, [channels][tokens], or come from there: both have rows of channels, planes
// with zero columns between rows of pixels and zeros around them. Four neighbouring floats of Y per thread.
// blockIdx: channel, piece, image (to_images). Pixel (0, 0) of a plane lies at `origin`, its rows are `pitch` apart.
#include "device.cuh"

// Y has rows of `lanes` floats, zeros after the last token.
extern "C" __global__ void __launch_bounds__(128)
    to_tokens(const float* __restrict__ x, float* __restrict__ y, int images, int height, int width, int plane, int origin,
              int pitch, int lanes) {
  sp::start_next();
  x = sp::wait_for_previous(x);
  const int at = 4 * (blockIdx.y * 128 + threadIdx.x), channel = blockIdx.x, channels = gridDim.x;
  if (at >= lanes) return;
  const int pixels = height * width;
  int image = at / pixels, row = (at - image * pixels) / width, column = at - image * pixels - row * width;
  float v[4];
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const float* from = x + (static_cast<size_t>(image) * channels + channel) * plane + origin;
    v[i] = image < images ? from[row * pitch + column] : 0.0f;
    if (++column == width) column = 0, row++;
    if (row == height) row = 0, image++;
  }
  *reinterpret_cast<float4*>(y + static_cast<size_t>(channel) * lanes + at) = make_float4(v[0], v[1], v[2], v[3]);
}

extern "C" __global__ void __launch_bounds__(128)
    to_images(const float* __restrict__ x, float* __restrict__ y, int height, int width, int plane, int origin, int pitch,
              int lanes) {
  sp::start_next();
  x = sp::wait_for_previous(x);
  const int at = 4 * (blockIdx.y * 128 + threadIdx.x), channel = blockIdx.x, channels = gridDim.x;
  if (at >= plane) return;
  const int p = at - origin, begin = max(p, 0);  // origin is a multiple of 4
  int row = begin / pitch, column = begin - row * pitch;
  const float* from = x + static_cast<size_t>(channel) * lanes + blockIdx.z * height * width;
  float v[4];
#pragma unroll
  for (int i = 0; i < 4; i++) {
    v[i] = p >= 0 && row < height && column < width ? from[row * width + column] : 0.0f;
    if (++column == pitch) column = 0, row++;
  }
  y += (static_cast<size_t>(blockIdx.z) * channels + channel) * plane;
  *reinterpret_cast<float4*>(y + at) = make_float4(v[0], v[1], v[2], v[3]);
}
