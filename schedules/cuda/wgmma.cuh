// Hopper's own tensor core instructions (sm_90a), also on weights with two non-zeros of every four columns, and copies of
// tiles of X by the copy engine.
#pragma once
#include "bulk.cuh"

namespace sp {

#ifdef SP_EMULATE

using sp_emu::TensorMap;
using sp_emu::shared_address;
__device__ __forceinline__ void copy_box(void* shared, const TensorMap* map, int n, int k, Mbarrier* bar) {
  sp_emu::copy_box(shared, map, n, k, bar);
}
__device__ __forceinline__ bool one_lane() { return threadIdx.x % 32 == 0; }
template <int COUNT>
__device__ __forceinline__ void fewer_registers() {}
template <int COUNT>
__device__ __forceinline__ void more_registers() {}
__device__ __forceinline__ void wgmma_begin() {}
__device__ __forceinline__ void wgmma_commit() {}
template <int LEFT>
__device__ __forceinline__ void wgmma_wait() {}
template <int COUNT>
__device__ __forceinline__ void wgmma_done(float (&)[COUNT]) {}
__device__ __forceinline__ uint64_t wgmma_weight(const void* shared) { return shared_address(shared); }
__device__ __forceinline__ uint64_t wgmma_boxes(const void* shared, int box) {
  return static_cast<uint64_t>(box) << 32 | shared_address(shared);
}
template <int HALF, int COUNT>
__device__ __forceinline__ void wgmma_sparse(float (&d)[COUNT], uint64_t a, uint64_t b, uint32_t chosen) {
  sp_emu::multiply_sparse(d, a, b, chosen, HALF);
}

template <int COUNT>
__device__ __forceinline__ void wgmma_dense(float (&d)[COUNT], uint64_t a, uint64_t b) {
  sp_emu::multiply_dense(d, a, b);
}

#else

// What cuTensorMapEncodeTiled writes.
struct alignas(64) TensorMap {
  uint64_t opaque[16];
};
// Copies the box at column n, row k; its bytes count for the current phase of `bar`. Boxes are 64 float16 wide; 16 bytes
// number c of row k are stored at number c ^ k % 8.
__device__ __forceinline__ void copy_box(void* shared, const TensorMap* map, int n, int k, Mbarrier* bar) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%2, %3}], [%4];" ::"r"(shared_address(shared)),
      "l"(map), "r"(n), "r"(k), "r"(shared_address(bar))
      : "memory");
}
// True in one lane of a warp that is all here. Copies that the compiler sees behind this are single instructions; behind
// any other condition it puts each into a loop over the lanes, which takes longer than the copy.
__device__ __forceinline__ bool one_lane() {
  int one;
  asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.s32 %0, 1, 0, p;\n}" : "=r"(one));
  return one != 0;
}
// Registers of the threads of a group of four warps, from what the launch gave them.
template <int COUNT>
__device__ __forceinline__ void fewer_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT)); }
template <int COUNT>
__device__ __forceinline__ void more_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT)); }

__device__ __forceinline__ void wgmma_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int LEFT>
__device__ __forceinline__ void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory"); }
// Sums are final from here on: what reads them stays behind this.
template <int COUNT>
__device__ __forceinline__ void wgmma_done(float (&d)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT; i++) asm volatile("" : "+f"(d[i])::"memory");
}
// Operands of wgmma_sparse and wgmma_dense in shared memory. W: 64 rows of 16 kept columns as [2][64][8]. X: 32 or 16
// rows of boxes that lie `box` bytes apart.
__device__ __forceinline__ uint64_t wgmma_weight(const void* shared) {
  return static_cast<uint64_t>(128 >> 4) << 32 | static_cast<uint64_t>(1024 >> 4) << 16 |
         (shared_address(shared) & 0x3ffff) >> 4;
}
__device__ __forceinline__ uint64_t wgmma_boxes(const void* shared, int box) {
  return static_cast<uint64_t>(1) << 62 | static_cast<uint64_t>(1024 >> 4) << 32 |
         static_cast<uint64_t>(box >> 4) << 16 | (shared_address(shared) & 0x3ffff) >> 4;
}

// D[64][n] += A[64][32] B[32][n] by four warps, n twice the length of d; a and b are such operands. Warp w has rows
// 16 w ... 16 w + 15 of D, as the C of n / 8 times mma_half. chosen: lane 4 g + 2 HALF + h says which columns of
// 16 h ... 16 h + 15 are kept, of rows g (lower 16 bits) and g + 8: of each four two, ascending, two bits each.
#define SP_EIGHT(d, i) \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
template <int HALF>
__device__ __forceinline__ void wgmma_sparse(float (&d)[32], uint64_t a, uint64_t b, uint32_t chosen) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"
      "wgmma.mma_async.sp.sync.aligned.m64n64k32.f32.f16.f16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, "
      "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
      "}, %32, %33, %34, %35, p, 1, 1, 0, 1;\n}"
      : SP_EIGHT(d, 0), SP_EIGHT(d, 8), SP_EIGHT(d, 16), SP_EIGHT(d, 24)
      : "l"(a), "l"(b), "r"(chosen), "n"(HALF));
}
template <int HALF>
__device__ __forceinline__ void wgmma_sparse(float (&d)[64], uint64_t a, uint64_t b, uint32_t chosen) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"
      "wgmma.mma_async.sp.sync.aligned.m64n128k32.f32.f16.f16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, "
      "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, "
      "%40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, "
      "%59, %60, %61, %62, %63"
      "}, %64, %65, %66, %67, p, 1, 1, 0, 1;\n}"
      : SP_EIGHT(d, 0), SP_EIGHT(d, 8), SP_EIGHT(d, 16), SP_EIGHT(d, 24), SP_EIGHT(d, 32), SP_EIGHT(d, 40),
        SP_EIGHT(d, 48), SP_EIGHT(d, 56)
      : "l"(a), "l"(b), "r"(chosen), "n"(HALF));
}
template <int HALF>
__device__ __forceinline__ void wgmma_sparse(float (&d)[128], uint64_t a, uint64_t b, uint32_t chosen) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"
      "wgmma.mma_async.sp.sync.aligned.m64n256k32.f32.f16.f16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, "
      "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, "
      "%40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, "
      "%59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, "
      "%78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, "
      "%97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, "
      "%113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
      "}, %128, %129, %130, %131, p, 1, 1, 0, 1;\n}"
      : SP_EIGHT(d, 0), SP_EIGHT(d, 8), SP_EIGHT(d, 16), SP_EIGHT(d, 24), SP_EIGHT(d, 32), SP_EIGHT(d, 40),
        SP_EIGHT(d, 48), SP_EIGHT(d, 56), SP_EIGHT(d, 64), SP_EIGHT(d, 72), SP_EIGHT(d, 80),
        SP_EIGHT(d, 88), SP_EIGHT(d, 96), SP_EIGHT(d, 104), SP_EIGHT(d, 112), SP_EIGHT(d, 120)
      : "l"(a), "l"(b), "r"(chosen), "n"(HALF));
}
// D[64][n] += A[64][16] B[16][n], the operands as above: the sparse instruction's kept columns are all.
__device__ __forceinline__ void wgmma_dense(float (&d)[32], uint64_t a, uint64_t b) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, "
      "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
      "}, %32, %33, p, 1, 1, 0, 1;\n}"
      : SP_EIGHT(d, 0), SP_EIGHT(d, 8), SP_EIGHT(d, 16), SP_EIGHT(d, 24)
      : "l"(a), "l"(b));
}
__device__ __forceinline__ void wgmma_dense(float (&d)[64], uint64_t a, uint64_t b) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, "
      "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, "
      "%42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, "
      "%62, %63"
      "}, %64, %65, p, 1, 1, 0, 1;\n}"
      : SP_EIGHT(d, 0), SP_EIGHT(d, 8), SP_EIGHT(d, 16), SP_EIGHT(d, 24), SP_EIGHT(d, 32), SP_EIGHT(d, 40),
        SP_EIGHT(d, 48), SP_EIGHT(d, 56)
      : "l"(a), "l"(b));
}
__device__ __forceinline__ void wgmma_dense(float (&d)[128], uint64_t a, uint64_t b) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.f16.f16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, "
      "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, "
      "%42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, "
      "%62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, "
      "%82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, "
      "%101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, "
      "%117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
      "}, %128, %129, p, 1, 1, 0, 1;\n}"
      : SP_EIGHT(d, 0), SP_EIGHT(d, 8), SP_EIGHT(d, 16), SP_EIGHT(d, 24), SP_EIGHT(d, 32), SP_EIGHT(d, 40),
        SP_EIGHT(d, 48), SP_EIGHT(d, 56), SP_EIGHT(d, 64), SP_EIGHT(d, 72), SP_EIGHT(d, 80), SP_EIGHT(d, 88),
        SP_EIGHT(d, 96), SP_EIGHT(d, 104), SP_EIGHT(d, 112), SP_EIGHT(d, 120)
      : "l"(a), "l"(b));
}
#undef SP_EIGHT

#endif

}  // namespace sp
