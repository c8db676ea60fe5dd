"""The size of TVM's thread pool. TVM keeps one pool for each calling thread; so does this file.

Three things about that pool are not obvious. Without a bound of our own it takes half of the cores (it assumes two
hardware threads a core). It never grows after the first parallel loop of a thread, so its bound is set to all cores at
once and only the number in use changes. And its default mode binds the calling thread to one core, which every Python
thread started later inherits: workers share all allowed cores here instead.
"""

from __future__ import annotations

import threading

from sparsetvm.core.thread_pool import configure_pool

_configured = threading.local()


def set_threads(count: int) -> int:
    """Give TVM's pool of the calling thread `count` threads and return how many it really has.

    Fewer than asked when this process has fewer cores, or when it ran parallel TVM code before its first call.
    """
    if getattr(_configured, "asked", None) == count:
        return int(_configured.real)
    import tvm

    configure_pool(count)
    _configured.asked = count
    _configured.real = int(tvm.get_global_func("runtime.NumThreads")())
    return int(_configured.real)
