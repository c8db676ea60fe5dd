// Bulk copies to, and barriers of, all blocks of a cluster (bulk.cuh has those of one block).
#pragma once
#include "bulk.cuh"

namespace sp {

#ifdef SP_EMULATE

__device__ __forceinline__ void barrier_arrive_at(Mbarrier* bar, int rank) {
  sp_emu::mbarrier_arrive(static_cast<Mbarrier*>(const_cast<void*>(sp_emu::remote(bar, rank))), 0);
}

#else

// Arrives at the barrier of block `rank` that lies where `bar` does. Not for all of the cluster to see what was written
// before (.release.cluster): that waits for everything that the thread has started, and doubled the time of two_four.
__device__ __forceinline__ void barrier_arrive_at(Mbarrier* bar, int rank) {
  asm volatile(
      "{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there];\n}" ::"r"(shared_address(bar)),
      "r"(rank)
      : "memory");
}

#endif

}  // namespace sp
