// Sums and maxima across a warp in fixed order, and loads that leave the first-level cache to others.
#pragma once
#include "device.cuh"

namespace sp {

// 16 bytes that only this thread reads, such as weights of a matrix-vector product: not kept in L1, kept in L2.
__device__ __forceinline__ float4 load_once4(const float* p) {
#ifdef SP_EMULATE
  return *reinterpret_cast<const float4*>(p);
#else
  float4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "l"(p));
  return v;
#endif
}

// Sum over the WIDTH neighbouring lanes, in all of them.
template <int WIDTH>
__device__ __forceinline__ float lane_sum(float v) {
#pragma unroll
  for (int step = WIDTH / 2; step > 0; step /= 2) v += __shfl_xor_sync(0xffffffffu, v, step);
  return v;
}

template <int WIDTH>
__device__ __forceinline__ float lane_max(float v) {
#pragma unroll
  for (int step = WIDTH / 2; step > 0; step /= 2) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, step));
  return v;
}

// Of whole numbers of all lanes of a warp, in all of them: sum, least, largest.
#ifdef SP_EMULATE
template <typename T, typename F>
__device__ __forceinline__ T lanes_by(T v, F f) {
  for (int step = 16; step > 0; step /= 2) v = f(v, __shfl_xor_sync(~0u, v, step));
  return v;
}
__device__ __forceinline__ float about_quotient(float a, float b) { return a / b; }
__device__ __forceinline__ int lane_total(int v) { return lanes_by(v, [](int a, int b) { return a + b; }); }
__device__ __forceinline__ unsigned lane_least(unsigned v) {
  return lanes_by(v, [](unsigned a, unsigned b) { return a < b ? a : b; });
}
__device__ __forceinline__ unsigned lane_most(unsigned v) {
  return lanes_by(v, [](unsigned a, unsigned b) { return a > b ? a : b; });
}
#else
// To two bits, without a call; may be zero where b is above 2^126.
__device__ __forceinline__ float about_quotient(float a, float b) { return __fdividef(a, b); }
__device__ __forceinline__ int lane_total(int v) { return __reduce_add_sync(~0u, v); }
__device__ __forceinline__ unsigned lane_least(unsigned v) { return __reduce_min_sync(~0u, v); }
__device__ __forceinline__ unsigned lane_most(unsigned v) { return __reduce_max_sync(~0u, v); }
#endif

// Sum over a block of WARPS warps, in all threads; `scratch`: WARPS floats of shared memory, free before the call.
template <int WARPS>
__device__ __forceinline__ float block_sum(float v, float* scratch) {
  v = lane_sum<32>(v);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
  __syncthreads();
  v = 0.0f;
#pragma unroll
  for (int w = 0; w < WARPS; w++) v += scratch[w];
  return v;
}

template <int WARPS>
__device__ __forceinline__ float block_max(float v, float* scratch) {
  v = lane_max<32>(v);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
  __syncthreads();
  v = scratch[0];
#pragma unroll
  for (int w = 1; w < WARPS; w++) v = fmaxf(v, scratch[w]);
  return v;
}

}  // namespace sp
