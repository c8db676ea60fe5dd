"""How TVM's thread pool is set up, for modules that are deployed and for candidates that are measured."""

from __future__ import annotations

import os

_SHARE_ALL_CORES = -3  # ThreadGroup::kSpecifyThreadShareAllCore: workers may run on all cores that are given
# How often an idle worker yields its core before it sleeps; TVM reads it when the first one starts. By default 300,000
# times: 50 ms on a core of its own, but where other processes keep all cores busy each time lasts as long as their time
# slices do. Until then it does not even see that the process wants to end, which took over ten minutes. 2,000 times are
# about 0.3 ms: longer than from one layer to the next.
SPIN_VARIABLE, SPINS = "TVM_THREAD_POOL_SPIN_COUNT", "2000"


def configure_pool(count: int) -> None:
    """Give TVM's pool of the calling thread `count` threads that share all allowed cores, none bound to one."""
    import tvm

    os.environ.setdefault(SPIN_VARIABLE, SPINS)
    cores = [str(core) for core in sorted(os.sched_getaffinity(0))]
    tvm.get_global_func("runtime.config_threadpool")(_SHARE_ALL_CORES, count, cores, len(cores))
