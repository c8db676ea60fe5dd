// What generated kernels of cuda.spmm_code share: V neighbouring positions of a thread, their sums, and the epilogue.
// SP_V 1, 2 or 4.
#pragma once
#include "epilogue.cuh"

// x, residual, y: at the thread's first position (x of staged kernels: at the block's). tile: shared memory, `mine` the
// thread's column of it. left: positions from the block's first to the end.
#define SP_GROUP_PARAMETERS                                                                                     \
  const float *__restrict__ x, SP_RESIDUAL_PARAMETER float *__restrict__ y, float *tile, const float *mine, \
      int left, unsigned real, bool inside
#if SP_RESIDUAL
#define SP_GROUP_ARGUMENTS x, residual, y, tile, mine, left, real, inside
#define SP_AT(offset) residual + (offset)
#else
#define SP_GROUP_ARGUMENTS x, y, tile, mine, left, real, inside
#define SP_AT(offset) nullptr
#endif

namespace sp {

#if SP_V == 1
using Vec = float;
#elif SP_V == 2
using Vec = float2;
#else
using Vec = float4;
#endif

__device__ __forceinline__ void fma(float& a, float x, float w) { a = fmaf(x, w, a); }
__device__ __forceinline__ void fma(float2& a, float2 x, float w) { fma(a.x, x.x, w), fma(a.y, x.y, w); }
__device__ __forceinline__ void fma(float4& a, float4 x, float w) {
  fma(a.x, x.x, w), fma(a.y, x.y, w), fma(a.z, x.z, w), fma(a.w, x.w, w);
}
__device__ __forceinline__ Vec splat(float v) {
#if SP_V == 1
  return v;
#elif SP_V == 2
  return make_float2(v, v);
#else
  return make_float4(v, v, v, v);
#endif
}
__device__ __forceinline__ void add(float& a, float b) { a += b; }
__device__ __forceinline__ void add(float2& a, float2 b) { a.x += b.x, a.y += b.y; }
__device__ __forceinline__ void add(float4& a, float4 b) { a.x += b.x, a.y += b.y, a.z += b.z, a.w += b.w; }

// Bit i of `real`: the thread's position i is a pixel.
__device__ __forceinline__ void finish(float& a, unsigned real) { a = real & 1 ? activate(a) : 0.0f; }
__device__ __forceinline__ void finish(float2& a, unsigned real) { finish(a.x, real), finish(a.y, real >> 1); }
__device__ __forceinline__ void finish(float4& a, unsigned real) {
  finish(a.x, real), finish(a.y, real >> 1), finish(a.z, real >> 2), finish(a.w, real >> 3);
}

__device__ __forceinline__ Vec read(const float* from) { return *reinterpret_cast<const Vec*>(from); }
__device__ __forceinline__ Vec read_shared(const float* from) { return *reinterpret_cast<const Vec*>(from); }

// Residual, activation, store.
__device__ __forceinline__ void write(float* y, Vec sum, unsigned real, const float* residual) {
#if SP_RESIDUAL
  add(sum, *reinterpret_cast<const Vec*>(residual));
#endif
  finish(sum, real);
  *reinterpret_cast<Vec*>(y) = sum;
}

__device__ __forceinline__ void zero4(float* to) {
  *reinterpret_cast<float4*>(to) = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
}

// Bit i: position p + i is a pixel.
__device__ __forceinline__ unsigned pixels(int p, int valid, int pitch, int width) {
  unsigned bits = 0;
#pragma unroll
  for (int i = 0; i < SP_V; i++)
    if (p + i < valid && (p + i) % pitch < width) bits |= 1u << i;
  return bits;
}

// One stage of X to shared memory: ROWS rows of COLUMNS floats, `stride` apart. p0 .. positions: what may be read.
template <int ROWS, int COLUMNS, int THREADS>
__device__ __forceinline__ void fill(float* tile, const float* x, int stride, int rows, int left) {
  constexpr int QUADS = COLUMNS / 4;
  const int q = int(threadIdx.x) % QUADS * 4;
#pragma unroll
  for (int i = 0; i < ROWS * QUADS; i += THREADS) {
    const int row = (i + int(threadIdx.x)) / QUADS;
    if (ROWS * QUADS % THREADS && row >= ROWS) continue;
    const bool inside = row < rows && q < left;
    copy16_if(tile + row * COLUMNS + q, inside ? x + row * stride + q : x, inside);
  }
  copy_commit();
}

}  // namespace sp
