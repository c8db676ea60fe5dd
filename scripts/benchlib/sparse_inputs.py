"""The two kinds of device of bench_sparse_sparse.py: which kernels of ours and which competitors run a layer there."""

from __future__ import annotations

import abc
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from sparsetvm.schedules.base import matching, template

from benchlib.competitors import competitors_of
from benchlib.kernel_row import time_python
from benchlib.mkl_sparse import mkl_product
from sparsetvm.core.config import Config
from sparsetvm.core.target import Target
from sparsetvm.core.task import Task
from sparsetvm.measure.candidate import Trial
from sparsetvm.measure.compile import build
from sparsetvm.measure.reference import TOLERANCE, Reference, to_physical
from sparsetvm.measure.timing import TimeCalls
from sparsetvm.search.candidates import candidates_of

_SMALL_SPACE = 12  # configs, of which all are tried


def kind_of(name: str) -> str:
    """What a template makes use of: nothing, the zeros of W, those of X too."""
    if template(name).dense:
        return "dense"
    return "sparse-sparse" if name.partition(".")[2] == "spmv_columns" else "sparse-dense"


class Layers(abc.ABC):
    """dense: competitors that ignore zeros. sparse: the one that does not and counts. least: of the rounds' times."""

    dense: tuple[str, ...]
    sparse: str
    least: Callable[[Sequence[float]], float]

    def __init__(self, target: Target) -> None:
        self.target = target

    @abc.abstractmethod
    def trials(self, task: Task, configs: list[Config], reference: Reference) -> Iterator[Any]:
        """A built kernel of each config with `check` and `timer`, as `candidate.Trial`."""

    @abc.abstractmethod
    def configs(self, task: Task, name: str) -> list[Config]:
        """Which configs of a template are tried for one token."""

    @abc.abstractmethod
    def others(self, task: Task, x: np.ndarray, reference: Reference) -> dict[str, TimeCalls]:
        """Timers of competitors, all of them checked. Ends the program when one is wrong."""

    def ours(self, task: Task, reference: Reference) -> dict[str, tuple[Config, Any]]:
        """Our fastest kernels by what they make use of; of more than one token the defaults."""
        groups: dict[str, list[Config]] = {"sparse-dense": [], "sparse-sparse": [], "dense": []}
        for found in matching(task.workload, self.target):
            if self.target.kind == "cuda" and not found.quick(task.workload):
                continue  # code for each non-zero: nvcc would take longer than everything else
            one = task.workload.n == 1
            default = found.default(task.workload, self.target)
            groups[kind_of(found.name)] += self.configs(task, found.name) if one else [default]
        return {kind: self._fastest(task, configs, reference) for kind, configs in groups.items() if configs}

    def _fastest(self, task: Task, configs: list[Config], reference: Reference) -> tuple[Config, Any]:
        """The config with the best time of a few, and its kernel."""
        best: tuple[float, Config, Any] | None = None
        for config, trial in zip(configs, self.trials(task, configs, reference), strict=True):
            checked = trial.check()
            if checked.status != "ok":
                raise SystemExit(f"{config}: {checked.status}: {checked.message}")
            timer = trial.timer(None)
            timer(20)
            us = min(timer(50) for _ in range(5)) * 1e6
            if best is None or us < best[0]:
                best = us, config, trial
        if best is None:
            raise SystemExit("no config")
        return best[1], best[2]


class CpuLayers(Layers):
    """One thread, beside OpenBLAS, ONNX Runtime, scipy and, where it was found, MKL. The least time counts: other
    programs only ever add to it.
    """

    dense = ("numpy", "onnxruntime")
    sparse = "mkl-sparse"
    least = staticmethod(min)

    def __init__(self, target: Target, mkl: Any) -> None:
        super().__init__(target)
        self._mkl = mkl
        self._folder = tempfile.TemporaryDirectory(prefix="sparsetvm-bench-")

    def trials(self, task: Task, configs: list[Config], reference: Reference) -> Iterator[Trial]:
        for config in configs:
            yield Trial(build(task, config, self.target, template), [reference])

    def configs(self, task: Task, name: str) -> list[Config]:
        return list(template(name).space(task.workload, self.target))

    def others(self, task: Task, x: np.ndarray, reference: Reference) -> dict[str, TimeCalls]:
        timers: dict[str, TimeCalls] = {}
        for other in competitors_of(task, {"x": x}, [*self.dense, "scipy"], 1, Path(self._folder.name)):
            agree(other.name, other.output(), reference, TOLERANCE)
            timers[other.name] = time_python(other.run)
        if self._mkl is not None:
            n, size = len(x), task.workload.m
            run, y = mkl_product(self._mkl, task.weight, x[0] if n == 1 else x.T)
            run()
            agree("mkl", np.ascontiguousarray(y.reshape(size, n).T), reference, TOLERANCE)
            timers[self.sparse] = time_python(run)
        return timers


class GpuLayers(Layers):
    """A GPU, beside cuBLAS in fp32, tf32 and fp16 and cuSPARSE, through PyTorch; all in CUDA graphs."""

    dense = ("torch-fp32",)
    sparse = "cusparse"
    least = staticmethod(statistics.median)

    def __init__(self, target: Target, names: Sequence[str]) -> None:
        from sparsetvm.measure.cuda_candidate import open_device

        super().__init__(target)
        self._names = list(names)
        open_device(target.device)  # memory belongs to its context

    def trials(self, task: Task, configs: list[Config], reference: Reference) -> Iterator[Any]:
        from sparsetvm.measure.cuda_candidate import CudaTrial, build_cuda

        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            built = pool.map(lambda config: build_cuda(task, config, self.target, template), configs)
            for config, each in zip(configs, built, strict=True):
                yield CudaTrial(each, [reference], self.target, template(config.template).tolerance)

    def configs(self, task: Task, name: str) -> list[Config]:
        """All of a small space; else those that are likely fastest, and what differs from the default in one knob."""
        candidates = candidates_of(task.workload, self.target)
        choice = candidates.choice(name)
        if choice is not None and choice.space.cardinality <= _SMALL_SPACE:
            return list(choice.space)
        return [] if choice is None else list(dict.fromkeys([*choice.likely(4), *candidates.variants(choice.default)]))

    def others(self, task: Task, x: np.ndarray, reference: Reference) -> dict[str, TimeCalls]:
        if not self._names:
            return {}
        from benchlib.gpu_competitors import gpu_competitors
        from benchlib.gpu_row import tolerance_of

        timers: dict[str, TimeCalls] = {}
        for number, other in enumerate(gpu_competitors(task, x, self._names)):
            agree(other.name, other.y, reference, tolerance_of(other.name))
            timers[f"{other.name} {number}"] = other.timer
        return timers


def agree(name: str, output: np.ndarray, reference: Reference, tolerance: float) -> None:
    """End the program when a logical output is not what the layer must compute."""
    error = reference.error(to_physical(reference.workload.layout_out, output))
    if not error <= tolerance:
        raise SystemExit(f"{name}: relative L2 error {error:.2e}")


def fastest_of_each(us: dict[str, float]) -> dict[str, float]:
    """ "torch-fp32 0" and "torch-fp32 1", the orientations of one competitor, become one: the faster."""
    found: dict[str, float] = {}
    for name, value in us.items():
        base = name.rstrip("0123456789").rstrip() if not name.startswith("ours") else name
        found[base] = min(value, found.get(base, value))
    return found
