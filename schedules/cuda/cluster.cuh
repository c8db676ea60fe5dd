// Bulk copies to, and barriers of, all blocks of a cluster (bulk.cuh has those of one block).
#pragma once
#include "bulk.cuh"

namespace sp {

#ifdef SP_EMULATE

__device__ __forceinline__ void bulk_copy_to_all(void* shared, const void* global, int bytes, Mbarrier* bar) {
  for (int rank = 0; rank < sp_emu::cluster_size; rank++)
    sp_emu::bulk_copy(const_cast<void*>(sp_emu::remote(shared, rank)), global, bytes,
                      static_cast<Mbarrier*>(const_cast<void*>(sp_emu::remote(bar, rank))));
}
__device__ __forceinline__ void barrier_arrive_at(Mbarrier* bar, int rank) {
  sp_emu::mbarrier_arrive(static_cast<Mbarrier*>(const_cast<void*>(sp_emu::remote(bar, rank))), 0);
}

#else

// Copies to the same place of the shared memory of all blocks; the bytes count for the current phase of their `bar`.
__device__ __forceinline__ void bulk_copy_to_all(void* shared, const void* global, int bytes, Mbarrier* bar) {
#if defined(SP_CLUSTER) && SP_CLUSTER > 1
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, [%3], %4;" ::"r"(
          shared_address(shared)),
      "l"(global), "r"(bytes), "r"(shared_address(bar)), "h"(static_cast<unsigned short>((1 << SP_CLUSTER) - 1))
      : "memory");
#else
  bulk_copy(shared, global, bytes, bar);
#endif
}
// Arrives at the barrier of block `rank` that lies where `bar` does.
__device__ __forceinline__ void barrier_arrive_at(Mbarrier* bar, int rank) {
  asm volatile(
      "{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [there];\n}" ::"r"(shared_address(bar)),
      "r"(rank)
      : "memory");
}

#endif

}  // namespace sp
