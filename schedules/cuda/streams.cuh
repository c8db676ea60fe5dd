// Loads in a place of their own: past L1, so that what is reused stays there (stream4), or before what follows them
// (early: constants that are to be on their way while wait_for_previous() waits; the compiler would load them after).
#pragma once
#include "device.cuh"

namespace sp {

#ifdef SP_EMULATE
__device__ __forceinline__ float4 stream4(const float4* global) { return *global; }
__device__ __forceinline__ uint4 stream4(const uint4* global) { return *global; }
template <typename T>
__device__ __forceinline__ T early(const T* global) { return *global; }
#else
__device__ __forceinline__ float early(const float* global) {
  float v;
  asm volatile("ld.global.f32 %0, [%1];" : "=f"(v) : "l"(global) : "memory");
  return v;
}
__device__ __forceinline__ int early(const int* global) {
  int v;
  asm volatile("ld.global.s32 %0, [%1];" : "=r"(v) : "l"(global) : "memory");
  return v;
}
__device__ __forceinline__ uint32_t early(const uint32_t* global) {
  uint32_t v;
  asm volatile("ld.global.u32 %0, [%1];" : "=r"(v) : "l"(global) : "memory");
  return v;
}
__device__ __forceinline__ int2 early(const int2* global) {
  int2 v;
  asm volatile("ld.global.v2.s32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(global) : "memory");
  return v;
}
__device__ __forceinline__ int4 early(const int4* global) {
  int4 v;
  asm volatile("ld.global.v4.s32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(global)
               : "memory");
  return v;
}
__device__ __forceinline__ uint2 early(const uint2* global) {
  uint2 v;
  asm volatile("ld.global.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(global) : "memory");
  return v;
}
__device__ __forceinline__ uint4 early(const uint4* global) {
  uint4 v;
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(global)
               : "memory");
  return v;
}
__device__ __forceinline__ float4 early(const float4* global) {
  float4 v;
  asm volatile("ld.global.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "l"(global)
               : "memory");
  return v;
}
__device__ __forceinline__ float4 stream4(const float4* global) {
  float4 v;
  asm("ld.global.nc.L1::no_allocate.v4.f32 {%0, %1, %2, %3}, [%4];"
      : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
      : "l"(global));
  return v;
}
__device__ __forceinline__ uint4 stream4(const uint4* global) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(global)
               : "memory");
  return v;
}
#endif

}  // namespace sp
