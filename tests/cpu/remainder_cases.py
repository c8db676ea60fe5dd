"""What the tests of the x86 kernels share: the targets to test and how to run one kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
import tvm

from sparsetvm.core.target import Target, cpu_flags

_AVX512 = {"avx512f", "avx512bw", "avx512dq", "avx512vl"}


def _target(isa: str, mcpu: str, needed: set[str]) -> Any:
    lacking = sorted(needed - cpu_flags())
    skip = pytest.mark.skipif(bool(lacking), reason=f"this CPU lacks {', '.join(lacking)}")
    return pytest.param(Target("cpu", mcpu, isa), id=isa, marks=skip)


TARGETS = [_target("avx512", "skylake-avx512", _AVX512), _target("avx2", "x86-64-v3", {"avx2", "fma"})]


def compile_kernel(func: Any, target: Target) -> Callable[..., None]:
    """Compile one PrimFunc for the target; the result takes TVM tensors."""
    name = func.attrs["global_symbol"]
    compiled = tvm.compile(func, target=tvm.target.Target({"kind": "llvm", "mcpu": target.mcpu}))
    return compiled[name]


def run_kernel(
    kernel: Callable[..., None], inputs: Sequence[np.ndarray], shape: tuple[int, ...], fill: float = np.nan
) -> np.ndarray:
    """Run on numpy arrays; the output starts as `fill`, so that a value that was never written shows."""
    out = tvm.runtime.tensor(np.full(shape, fill, np.float32))
    arrays = (a if a.dtype == np.int32 else a.astype(np.float32) for a in inputs)
    kernel(*(tvm.runtime.tensor(np.ascontiguousarray(a)) for a in arrays), out)
    return out.numpy()


def with_threads(target: Target, threads: int) -> Target:
    """The same target with another number of threads."""
    return msgspec.structs.replace(target, threads=threads)
