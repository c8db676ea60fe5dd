"""The machine that was measured, and how this process is set up for one or more threads."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from sparsetvm.core.target import Target, device_fingerprint, toolchain_fingerprint, version_of
from sparsetvm.errors import UsageError

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_COMPETITORS = ("onnxruntime", "openvino", "scipy", "torch")


def use_threads(threads: int) -> None:
    """Start the script again with BLAS set to `threads`, unless it is: OpenBLAS reads that when numpy is imported."""
    wanted = dict.fromkeys(_THREAD_VARIABLES, str(threads))
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **wanted})


def pin(threads: int) -> None:
    """Pin a single thread to the last core that it may use, where kernels are tuned as well."""
    if threads == 1:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def cores_to_measure_on(jobs: int) -> list[int]:
    """That many of the cores that this process may use, the last first, each with a physical core of its own while
    there are such. Raises UsageError when there are fewer cores.
    """
    mine = sorted(os.sched_getaffinity(0), reverse=True)
    if jobs > len(mine):
        raise UsageError(f"{jobs} processes have no core each, there are {len(mine)}", hint=f"take at most {len(mine)}")
    firsts = list({_siblings(core): core for core in reversed(mine)}.values())[::-1]
    if jobs > len(firsts):
        print(f"note: {jobs} processes share {len(firsts)} physical cores, which disturbs timings", file=sys.stderr)
    return [*firsts, *(core for core in mine if core not in firsts)][:jobs]


def _siblings(core: int) -> str:
    """The hardware threads of the physical core of `core`; only itself where Linux does not tell."""
    path = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
    return path.read_text().strip() if path.exists() else str(core)


def describe_machine(target: Target) -> dict[str, Any]:
    """Device, target, threads and versions, for the JSON."""
    device, toolchain = device_fingerprint(target), toolchain_fingerprint()
    versions = {name: version_of(name) for name in _COMPETITORS if version_of(name) != "missing"}
    return {
        "device": device.model, "vendor": device.vendor, "isa": device.isa, "cores": device.cores,
        "target": str(target), "threads": target.threads, "sparsetvm": toolchain.sparsetvm, "tvm": toolchain.tvm,
        "numpy": toolchain.numpy, **versions,
        **({"driver": device.driver, "clocks": device.clocks} if target.kind == "cuda" else {}),
    }  # fmt: skip
