"""The size of TVM's thread pool. TVM keeps one pool for each calling thread; so does this file."""

from __future__ import annotations

import threading

_AFFINITY_SPREAD = 1  # TVM's kBig: bind the workers to the fast cores, one each
_configured = threading.local()


def set_threads(count: int) -> None:
    """Give TVM's pool of the calling thread `count` threads; does nothing when it has them already."""
    if getattr(_configured, "count", None) == count:
        return
    import tvm

    tvm.get_global_func("runtime.config_threadpool")(_AFFINITY_SPREAD, count)
    _configured.count = count
