// Outputs on flat positions: which are pixels, and the zeros around an image.
#pragma once
#include "epilogue.cuh"

namespace sp {

// Bit i: position p + i is a pixel (p % pitch < width, p < valid). COUNT neighbours.
template <int COUNT>
__device__ __forceinline__ unsigned pixels(int p, int pitch, int width, int valid) {
  unsigned bits = 0;
  int column = p % pitch;
#pragma unroll
  for (int i = 0; i < COUNT; i++) {
    if (column < width && p + i < valid) bits |= 1u << i;
    if (++column == pitch) column = 0;
  }
  return bits;
}

// Activation of four sums; zero where `real` has no bit.
__device__ __forceinline__ float4 finish4(float4 v, unsigned real) {
  v.x = real & 1 ? activate(v.x) : 0.0f;
  v.y = real & 2 ? activate(v.y) : 0.0f;
  v.z = real & 4 ? activate(v.z) : 0.0f;
  v.w = real & 8 ? activate(v.w) : 0.0f;
  return v;
}

__device__ __forceinline__ float4 add4(float4 a, float4 b) {
  return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

// Four neighbours, 16-byte aligned.
__device__ __forceinline__ void read4(float* to, const float* from) {
  const float4 v = *reinterpret_cast<const float4*>(from);
  to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
}

// Zeros in floats [0, head) and [tail, stop) of a plane (all multiples of 4), by one warp.
__device__ __forceinline__ void zero_borders(float* plane, int head, int tail, int stop, int lane) {
  const float4 zero = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  for (int i = 4 * lane; i < head; i += 128) *reinterpret_cast<float4*>(plane + i) = zero;
  for (int i = tail + 4 * lane; i < stop; i += 128) *reinterpret_cast<float4*>(plane + i) = zero;
}

}  // namespace sp
