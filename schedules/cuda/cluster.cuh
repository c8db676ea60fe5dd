// What blocks of a cluster tell each other beside distributed shared memory (device.cuh): stores to another block's shared
// memory that a barrier of that block counts (bulk.cuh has the barriers of one block).
//
// A block that others store to makes its barriers, then: barriers_ready(), cluster_arrive(); whoever stores calls
// cluster_wait() before. cluster_sync() would do as well, but is a fence of all memory, which takes about a microsecond.
// Blocks that wait for what is stored to them need no barrier at their end.
#pragma once
#include "bulk.cuh"

namespace sp {

#ifdef SP_EMULATE

__device__ __forceinline__ void cluster_arrive() {}
__device__ __forceinline__ void cluster_wait() { sp_emu::cluster_barrier(); }
struct RemoteStore {
  float* shared;
  Mbarrier* bar;
  int rank;
  template <int COUNT>
  __device__ __forceinline__ void store(int at, const float* values) const {
    sp_emu::store_later(const_cast<void*>(sp_emu::remote(shared + at, rank)), values, COUNT,
                        static_cast<Mbarrier*>(const_cast<void*>(sp_emu::remote(bar, rank))));
  }
};
__device__ __forceinline__ RemoteStore remote_store(float* shared, Mbarrier* bar, int rank) { return {shared, bar, rank}; }

#else

__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory"); }
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// Stores floats at `shared` in block `rank` and counts their bytes there at `bar` (barrier_expect).
struct RemoteStore {
  uint32_t shared, bar;
  // COUNT (1, 2 or 4, as `at` is aligned) floats from `at` on.
  template <int COUNT>
  __device__ __forceinline__ void store(int at, const float* v) const {
    static_assert(COUNT == 1 || COUNT == 2 || COUNT == 4, "no such vector");
    const uint32_t to = shared + 4 * at;
    if constexpr (COUNT == 4)
      asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(to),
                   "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3]), "r"(bar)
                   : "memory");
    else if constexpr (COUNT == 2)
      asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(to),
                   "f"(v[0]), "f"(v[1]), "r"(bar)
                   : "memory");
    else
      asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %1, [%2];" ::"r"(to), "f"(v[0]), "r"(bar)
                   : "memory");
  }
};
__device__ __forceinline__ RemoteStore remote_store(float* shared, Mbarrier* bar, int rank) {
  RemoteStore to;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(to.shared) : "r"(shared_address(shared)), "r"(rank));
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(to.bar) : "r"(shared_address(bar)), "r"(rank));
  return to;
}

#endif

}  // namespace sp
