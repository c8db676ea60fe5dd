"""Constants of TVM's thread pool."""

from __future__ import annotations

SHARE_ALL_CORES = -3  # ThreadGroup::kSpecifyThreadShareAllCore: workers may run on all cores that are given
# How often an idle worker yields its core before it sleeps; TVM reads it when the first one starts. By default 300,000
# times: 50 ms on a core of its own, but where other processes keep all cores busy each time lasts as long as their time
# slices do. Until then it does not even see that the process wants to end, which took over ten minutes. 2,000 times are
# about 0.3 ms: longer than from one layer to the next.
SPIN_VARIABLE, SPINS = "TVM_THREAD_POOL_SPIN_COUNT", "2000"
