// Loads of data that is read once, past L1, so that what is reused stays there.
#pragma once
#include "device.cuh"

namespace sp {

#ifdef SP_EMULATE
__device__ __forceinline__ float4 stream4(const float4* global) { return *global; }
#else
__device__ __forceinline__ float4 stream4(const float4* global) {
  float4 v;
  asm("ld.global.nc.L1::no_allocate.v4.f32 {%0, %1, %2, %3}, [%4];"
      : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
      : "l"(global));
  return v;
}
#endif

}  // namespace sp
