// Images resized by linear interpolation (SP_LINEAR 1), or by picking the nearest pixel: SP_FLOATS neighbours per thread.
// What a row or column of Y is made of lies in tables, which are read while the kernel before still runs.
#include "positions.cuh"
#include "streams.cuh"

__device__ __forceinline__ float mix(float a, float b, float weight) { return fmaf(b - a, weight, a); }

// rows[r], columns[c]: the two rows (columns) of X that row r (column c) of Y lies between; below, right: weight of the
// second. Y: planes of y_plane floats, pixel (0, 0) at y0, rows y_pitch apart, zeros around height x width; X alike.
extern "C" __global__ void __launch_bounds__(128)
    resize(const float* __restrict__ x, const int2* __restrict__ rows, const float* __restrict__ below,
           const int2* __restrict__ columns, const float* __restrict__ right, float* __restrict__ y, int count, int x_plane,
           int x0, int x_pitch, int y_plane, int y0, int y_pitch, int height, int width) {
  sp::start_next();
  const int at = (blockIdx.x * 128 + threadIdx.x) * SP_FLOATS;
  const int plane = min(at, count - 1) / y_plane, p = at - plane * y_plane - y0;
  int row = p >= 0 ? p / y_pitch : height, column = p - row * y_pitch;  // height: outside of the image
  int2 across[SP_FLOATS], down[SP_FLOATS];
#if SP_LINEAR
  float weight[SP_FLOATS], under[SP_FLOATS];
#endif
  bool real[SP_FLOATS];
#pragma unroll
  for (int i = 0; i < SP_FLOATS; i++) {
    real[i] = row < height && column < width;
    across[i] = sp::early(columns + (real[i] ? column : 0));
    down[i] = sp::early(rows + (real[i] ? row : 0));
#if SP_LINEAR
    weight[i] = sp::early(right + (real[i] ? column : 0));
    under[i] = sp::early(below + (real[i] ? row : 0));
#endif
    if (++column == y_pitch) column = 0, row++;
  }
  x = sp::wait_for_previous(x);
  if (at >= count) return;
  x += static_cast<size_t>(plane) * x_plane + x0;
  float v[SP_FLOATS];
#pragma unroll
  for (int i = 0; i < SP_FLOATS; i++) {
    const float* first = x + static_cast<size_t>(down[i].x) * x_pitch;
#if SP_LINEAR
    const float* second = x + static_cast<size_t>(down[i].y) * x_pitch;
    const float left = mix(first[across[i].x], second[across[i].x], under[i]);
    v[i] = mix(left, mix(first[across[i].y], second[across[i].y], under[i]), weight[i]);
#else
    v[i] = first[across[i].x];
#endif
    if (!real[i]) v[i] = 0.0f;
  }
#if SP_FLOATS == 4
  *reinterpret_cast<float4*>(y + at) = make_float4(v[0], v[1], v[2], v[3]);
#else
  y[at] = v[0];
#endif
}
