"""One candidate from config to a callable kernel: pack, kernel, tvm.compile."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparsetvm.core.config import Config
from sparsetvm.core.target import Target
from sparsetvm.core.task import Task
from sparsetvm.errors import SparseTvmError
from sparsetvm.schedules.base import Packed, Template, is_for

SYMBOL = "sparsetvm_candidate"

FindTemplate = Callable[[str], Template]


class InvalidConfig(Exception):
    """The config is not one that the template can build for this workload."""


@dataclass(frozen=True)
class Built:
    """A kernel in memory. `module` times `SYMBOL`; `arrays` are its packed arguments."""

    module: Any
    function: Any
    arrays: tuple[np.ndarray, ...]
    seconds: float


def tvm_target(target: Target) -> Any:
    """The tvm.target.Target of a sparsetvm target; without mcpu LLVM would use no vector extensions."""
    import tvm

    host = {"kind": "llvm", "mcpu": target.mcpu, "num-cores": target.threads}
    if target.kind == "cuda":
        return tvm.target.Target({"kind": "cuda", "arch": target.isa}, host=host)
    return tvm.target.Target(host)


def wake_compiler(target: Target) -> None:
    """Compile and load an empty kernel: what TVM and LLVM set up on first use takes 400 ms, and forks inherit it."""
    import tvm
    from tvm.script import tirx as T

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def nothing(Y: T.Buffer((1,), "float32")):  # type: ignore[no-untyped-def,valid-type]
        T.func_attr({"tirx.noalias": True, "global_symbol": SYMBOL})
        for i in T.serial(1):
            Y[i] = T.float32(0)

    tvm.compile(nothing, target=tvm_target(target))[SYMBOL]


def packed_kernel(task: Task, config: Config, target: Target, find: FindTemplate) -> tuple[Any, Packed]:
    """The template's kernel and what it reads. Raises InvalidConfig."""
    workload = task.workload
    try:
        template = find(config.template)
    except KeyError:
        raise InvalidConfig(f"no template is called '{config.template}'") from None
    if not is_for(template.name, target) or not template.matches(workload, target):
        raise InvalidConfig(f"template '{config.template}' does not match the workload")
    if not template.space(workload, target).contains(config):
        raise InvalidConfig(f"{config} is not in the template's space")
    try:
        packed = template.pack(task.weight, task.bias, workload, config, target)
        return template.kernel(workload, config, packed, target, SYMBOL), packed
    except (ValueError, SparseTvmError) as problem:
        raise InvalidConfig(str(problem)) from problem


def build(task: Task, config: Config, target: Target, find: FindTemplate) -> Built:
    """Build the config in memory. Raises InvalidConfig, or whatever TVM raises when it cannot compile the kernel."""
    import tvm

    start = time.perf_counter()
    function, packed = packed_kernel(task, config, target, find)
    executable = tvm.compile(function, target=tvm_target(target))
    return Built(executable.mod, executable[SYMBOL], packed.arrays, time.perf_counter() - start)


def build_library(task: Task, config: Config, target: Target, find: FindTemplate, library: Path) -> float:
    """Build the config into a shared library with its packed arrays beside it; seconds it took."""
    import tvm

    start = time.perf_counter()
    function, packed = packed_kernel(task, config, target, find)
    tvm.compile(function, target=tvm_target(target)).export_library(str(library))
    np.savez(arrays_path(library), *packed.arrays)
    return time.perf_counter() - start


def load_library(library: Path) -> Built:
    """Load what `build_library` wrote."""
    import tvm

    with np.load(arrays_path(library), allow_pickle=False) as stored:
        arrays = tuple(stored[f"arr_{i}"] for i in range(len(stored.files)))
    module = tvm.runtime.load_module(str(library))
    return Built(module, module[SYMBOL], arrays, 0.0)


def arrays_path(library: Path) -> Path:
    """Where the packed arrays of a library lie."""
    return library.with_suffix(".npz")
