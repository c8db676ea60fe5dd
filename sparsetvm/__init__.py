"""sparsetvm: an autotuning compiler on Apache TVM that makes pruned neural networks fast.

    import sparsetvm
    sparsetvm.tune("model.onnx", output="model.so")
    module = sparsetvm.load("model.so")
    outputs = module.run({"x": array})

The functions are those of `sparsetvm.api`; nothing heavy is imported before the first of them is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sparsetvm.core.version import VERSION as __version__

if TYPE_CHECKING:
    from sparsetvm.api import (
        bench,
        compile,
        doctor,
        inspect,
        inspect_library,
        load,
        prune,
        tasks,
        tune,
        verify,
        write_report,
    )
    from sparsetvm.errors import SparseTvmError

__all__ = [
    "SparseTvmError",
    "__version__",
    "bench",
    "compile",
    "doctor",
    "inspect",
    "inspect_library",
    "load",
    "prune",
    "tasks",
    "tune",
    "verify",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name == "SparseTvmError":
        from sparsetvm.errors import SparseTvmError

        return SparseTvmError
    if name in __all__:
        from sparsetvm import api

        return getattr(api, name)
    raise AttributeError(f"module 'sparsetvm' has no attribute '{name}'")
