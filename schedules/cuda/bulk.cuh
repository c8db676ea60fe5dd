// Bulk copies to shared memory by the copy engine, and the barriers in shared memory that they complete (Hopper).
//
// A barrier's phase ends when `count` threads have arrived and all bytes that were expected have been copied. Waiting
// for parity p returns once the phase of that parity (the first has 0) has ended.
#pragma once
#include "device.cuh"

namespace sp {

#ifdef SP_EMULATE

using sp_emu::Mbarrier;
__device__ __forceinline__ void barrier_init(Mbarrier* bar, int count) { sp_emu::mbarrier_init(bar, count); }
__device__ __forceinline__ void barriers_ready() {}
__device__ __forceinline__ void barrier_arrive(Mbarrier* bar) { sp_emu::mbarrier_arrive(bar, 0); }
__device__ __forceinline__ void barrier_expect(Mbarrier* bar, int bytes) { sp_emu::mbarrier_arrive(bar, bytes); }
__device__ __forceinline__ void barrier_wait(Mbarrier* bar, int parity) { sp_emu::mbarrier_wait(bar, parity); }
__device__ __forceinline__ void barrier_arrive_copied(Mbarrier* bar) { sp_emu::mbarrier_arrive_copied(bar); }
__device__ __forceinline__ void bulk_copy(void* shared, const void* global, int bytes, Mbarrier* bar) {
  sp_emu::bulk_copy(shared, global, bytes, bar);
}

#else

struct alignas(8) Mbarrier {
  uint64_t state;
};
__device__ __forceinline__ void barrier_init(Mbarrier* bar, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(bar)), "r"(count) : "memory");
}
// After the barriers' thread has made them, before the others are told (__syncthreads).
__device__ __forceinline__ void barriers_ready() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void barrier_arrive(Mbarrier* bar) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(bar)) : "memory");
}
// Arrives, and makes the phase wait for `bytes` more bytes.
__device__ __forceinline__ void barrier_expect(Mbarrier* bar, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(bar)), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void barrier_wait(Mbarrier* bar, int parity) {
  asm volatile(
      "{\n.reg .pred done;\n"
      "AGAIN:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra AGAIN;\n}" ::"r"(shared_address(bar)),
      "r"(parity)
      : "memory");
}
// Arrives when all of this thread's cp.async have been done.
__device__ __forceinline__ void barrier_arrive_copied(Mbarrier* bar) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(bar)) : "memory");
}
// `bytes` and both addresses are multiples of 16. The bytes count for the current phase of `bar`.
__device__ __forceinline__ void bulk_copy(void* shared, const void* global, int bytes, Mbarrier* bar) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(shared)),
               "l"(global), "r"(bytes), "r"(shared_address(bar))
               : "memory");
}

#endif

}  // namespace sp
