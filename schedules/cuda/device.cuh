// What kernels need of the machine below CUDA C++: asynchronous copies to shared memory, clusters with distributed
// shared memory, tensor cores, float16 numbers as bits. Kernel sources use these names alone, so that the tests can
// compile them for a CPU (SP_EMULATE).
#pragma once
#include <cstdint>

#ifdef SP_EMULATE
#include "cuda_shim.h"
#endif

// Dynamic shared memory of the block as `type* name`.
#ifdef SP_EMULATE
#define SP_DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(sp_emu::dynamic_shared())
#else
#define SP_DYNAMIC_SHARED(type, name)              \
  extern __shared__ __align__(128) char sp_dynamic_shared[]; \
  type* name = reinterpret_cast<type*>(sp_dynamic_shared)
#endif

// In front of a kernel's name: clusters of SP_CLUSTER blocks along x.
#if defined(SP_CLUSTER) && SP_CLUSTER > 1 && !defined(SP_EMULATE)
#define SP_CLUSTER_DIMS __cluster_dims__(SP_CLUSTER, 1, 1)
#else
#define SP_CLUSTER_DIMS
#endif

namespace sp {

#ifdef SP_EMULATE

__device__ __forceinline__ void copy16(void* shared, const void* global) { sp_emu::copy_later(shared, global, 16, 0); }
__device__ __forceinline__ void copy4(void* shared, const void* global) { sp_emu::copy_later(shared, global, 4, 0); }
__device__ __forceinline__ void copy16_if(void* shared, const void* global, bool valid) {
  sp_emu::copy_later(shared, global, 16, valid ? 0 : 16);
}
__device__ __forceinline__ void copy4_if(void* shared, const void* global, bool valid) {
  sp_emu::copy_later(shared, global, 4, valid ? 0 : 4);
}
__device__ __forceinline__ void copy_commit() { sp_emu::commit(); }
template <int LEFT>
__device__ __forceinline__ void copy_wait() { sp_emu::wait(LEFT); }
__device__ __forceinline__ void wait_for_previous() {}
template <typename T>
__device__ __forceinline__ T* wait_for_previous(T* activations) { return activations; }
template <typename T>
__device__ __forceinline__ T* wait_for_copies(T* activations) { return activations; }
template <typename T>
__device__ __forceinline__ T* written_before(T* activations) { return activations; }
template <typename T>
__device__ __forceinline__ T load_written(const void* from) { return *static_cast<const T*>(from); }
__device__ __forceinline__ void start_next() {}
__device__ __forceinline__ void cluster_sync() { sp_emu::cluster_barrier(); }
__device__ __forceinline__ int cluster_rank() { return int(blockIdx.x) % sp_emu::cluster_size; }
__device__ __forceinline__ float4 cluster_load4(const float* shared, int rank) {
  return *static_cast<const float4*>(sp_emu::remote(shared, rank));
}
__device__ __forceinline__ float half_to_float(unsigned short bits) { return sp_emu::half_to_float(bits); }
__device__ __forceinline__ unsigned short float_to_half(float x) { return sp_emu::float_to_half(x); }
__device__ __forceinline__ void halves_to_floats(uint32_t both, float& low, float& high) {
  low = half_to_float(static_cast<unsigned short>(both)), high = half_to_float(static_cast<unsigned short>(both >> 16));
}
__device__ __forceinline__ uint32_t to_tf32(float x) {
  if (!std::isfinite(x)) return std::isnan(x) ? 0x7fffe000u : __float_as_uint(x);
  return (__float_as_uint(x) + 0x1000u) & 0xffffe000u;
}
__device__ __forceinline__ void mma_tf32(float (&c)[4], const float (&a)[4], uint32_t b0, uint32_t b1) {
  sp_emu::multiply_tf32(c, a, b0, b1);
}

#else

__device__ __forceinline__ uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// cp.async: 16 bytes (past L1) or 4; `_if` stores zeros instead where `valid` is false (`global` is not read then, but
// must be an address that may be formed).
__device__ __forceinline__ void copy16(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global));
}
__device__ __forceinline__ void copy4(void* shared, const void* global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(shared)), "l"(global));
}
__device__ __forceinline__ void copy16_if(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(valid ? 16 : 0));
}
__device__ __forceinline__ void copy4_if(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(valid ? 4 : 0));
}
__device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits for all of this thread's groups but the last LEFT. Other threads see the data after the next barrier.
template <int LEFT>
__device__ __forceinline__ void copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory"); }

// Programmatic dependent launch (Launch.overlaps): blocks of this kernel may start before the kernel before it has ended.
// All of its threads must call wait_for_previous() before they read activations or write anything; weights may be read
// earlier. start_next() lets the kernel after this one start: it, too, waits for the end of this one before it reads.
__device__ __forceinline__ void wait_for_previous() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
// The compilers take loads through `const __restrict__` pointers for constant (ld.global.nc) and move them past any
// barrier: nvcc does, and ptxas moves even those that nvcc left behind the wait in front of it. So what is read through
// the pointer that this one returns are loads like any other: where it comes from is not to be seen, but that it is one
// to global memory. It must not be read with __ldg. For use behind the wait.
template <typename T>
__device__ __forceinline__ T* written_before(T* activations) {
  size_t global;
  asm volatile("cvta.to.global.u64 %0, %1;" : "=l"(global) : "l"(activations) : "memory");
  return static_cast<T*>(const_cast<void*>(static_cast<const void*>(__cvta_global_to_generic(global))));
}
template <typename T>
__device__ __forceinline__ T* wait_for_previous(T* activations) {
  wait_for_previous();
  return written_before(activations);
}
// One such load of 4, 8 or 16 bytes, for kernels that have no registers to keep a pointer in.
template <typename T>
__device__ __forceinline__ T load_written(const void* from) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16, "a load has 4, 8 or 16 bytes");
  const size_t at = __cvta_generic_to_global(from);
  union {
    T value;
    uint32_t words[sizeof(T) / 4];
  };
  if constexpr (sizeof(T) == 4)
    asm volatile("ld.global.b32 %0, [%1];" : "=r"(words[0]) : "l"(at));
  else if constexpr (sizeof(T) == 8)
    asm volatile("ld.global.v2.b32 {%0, %1}, [%2];" : "=r"(words[0]), "=r"(words[1]) : "l"(at));
  else
    asm volatile("ld.global.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "l"(at));
  return value;
}
// As wait_for_previous, with fewer registers; ptxas may still take loads for constant. For X that is copied (cp.async)
// and read late.
template <typename T>
__device__ __forceinline__ T* wait_for_copies(T* activations) {
  int zero;
  asm volatile("griddepcontrol.wait;\nmov.s32 %0, 0;" : "=r"(zero)::"memory");
  return activations + zero;
}
__device__ __forceinline__ void start_next() { asm volatile("griddepcontrol.launch_dependents;"); }

__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
__device__ __forceinline__ int cluster_rank() {
  int rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
// 16 bytes from the place `shared` of the dynamic shared memory of block `rank` of the cluster.
__device__ __forceinline__ float4 cluster_load4(const float* shared, int rank) {
  uint32_t address;
  float4 v;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(shared)), "r"(rank));
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"(address)
               : "memory");
  return v;
}
// The bits of a float16, which stay exact as a float32; a float32 becomes the nearest float16.
__device__ __forceinline__ float half_to_float(unsigned short bits) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
  return x;
}
__device__ __forceinline__ void halves_to_floats(uint32_t both, float& low, float& high) {
  asm("{\n.reg .f16 l, h;\nmov.b32 {l, h}, %2;\ncvt.f32.f16 %0, l;\ncvt.f32.f16 %1, h;\n}"
      : "=f"(low), "=f"(high)
      : "r"(both));
}
__device__ __forceinline__ unsigned short float_to_half(float x) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}

// Rounds to TF32 (8 bits of exponent, 10 of fraction), halves away from zero.
__device__ __forceinline__ uint32_t to_tf32(float x) {
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(x));
  return rounded;
}
// C[16][8] += A[16][8] B[8][8] by a warp, factors rounded to TF32, sums in float32. Lane 4 g + t has
//   a: A[g][t], A[g + 8][t], A[g][t + 4], A[g + 8][t + 4];  b0, b1: B[t][g], B[t + 4][g];
//   c: C[g][2 t], C[g][2 t + 1], C[g + 8][2 t], C[g + 8][2 t + 1].
__device__ __forceinline__ void mma_tf32(float (&c)[4], const float (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])), "r"(__float_as_uint(a[3])),
        "r"(b0), "r"(b1));
}

#endif

}  // namespace sp
