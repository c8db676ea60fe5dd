"""One row of bench_kernels on a GPU: a layer of ours and its competitors, each in CUDA graphs, timed in turn."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from sparsetvm.schedules.base import template
from sparsetvm.schedules.cuda.launch import Launch

from benchlib.block_csr import BLOCK_COMPETITORS, TWO_FOUR
from benchlib.case import Case
from benchlib.configs import ConfigSource
from benchlib.kernel_row import OURS_DENSE, Failed, time_in_turn
from sparsetvm.core.arithmetic import TOLERANCES
from sparsetvm.core.config import Config
from sparsetvm.core.nvml import current_clocks
from sparsetvm.core.target import Target
from sparsetvm.core.task import Task
from sparsetvm.core.workload import Epilogue
from sparsetvm.errors import SparseTvmError
from sparsetvm.measure.compile import packed_kernel
from sparsetvm.measure.cuda_candidate import CudaTrial, build_cuda, open_device
from sparsetvm.measure.cuda_timing import L2Flush
from sparsetvm.measure.nvcc import CompileError, Source, compile_sources, launch_source
from sparsetvm.measure.reference import Reference, input_shape, make_reference, to_physical
from sparsetvm.measure.timing import time_repeats

if TYPE_CHECKING:
    from benchlib.gpu_competitors import GpuCompetitor

_OURS = "ours"
# Relative L2 error that a competitor may have; inputs are standard normal.
_TOLERANCES = {
    "torch-fp32": 1e-5, "torch-tf32": 3e-3, "torch-fp16": 3e-3, "cusparse": 1e-5,
    **dict.fromkeys((*BLOCK_COMPETITORS, TWO_FOUR), 3e-3),
}  # fmt: skip
# Competitors that compute what ours may compute.
_EXACT = ("torch-fp32", OURS_DENSE)
_EXACT_TF32 = (*_EXACT, "torch-tf32")
_EXACT_FP16 = (*_EXACT_TF32, "torch-fp16")
_COLD_SECONDS = 0.2
_PACKERS = 8  # layers that are packed at once: each takes some hundred MB


class GpuKernelBench:
    """Times cases on one GPU. names: competitors; peak: GFLOP/s of its float32 FMAs at the highest clock."""

    def __init__(self, target: Target, configs: ConfigSource, names: list[str], peak: float) -> None:
        self._target, self._configs, self._names, self._peak = target, configs, names, peak
        open_device(target.device)  # memory belongs to its context
        self._flush = L2Flush(target.l2)

    def row(self, case: Case) -> dict[str, Any]:
        """The row of a case. Raises Failed."""
        task = case.task(self._target)
        config, source = self._configs.choose(task)
        workload = task.workload
        x = np.random.default_rng(0).standard_normal(input_shape(workload)).astype(np.float32)
        reference = make_reference(workload, task.weight, task.bias, 0, x)
        ours, error = self._trial(task, config, reference)
        dense = [
            (other, self._trial(task, other, reference)[0]) for other in self._configs.dense(task) if other != config
        ]
        timers = {_OURS: ours.timer(None), **{str(other): trial.timer(None) for other, trial in dense}}
        others = self._competitors(task, x)
        for number, other in enumerate(others):
            timers[f"{other.name} {number}"] = other.timer
        times = time_in_turn(timers)
        us = {name: statistics.median(values) for name, values in times.items()}
        clocks = current_clocks(self._target.device)
        if ours.check().status != "ok":
            raise Failed(f"{config}: wrong after it was timed")
        baselines: dict[str, float] = {}
        for number, other in enumerate(others):
            baselines[other.name] = min(us[f"{other.name} {number}"], baselines.get(other.name, np.inf))
        is_dense = template(config.template).dense
        own = [us[str(other)] for other, _ in dense] + ([us[_OURS]] if is_dense else [])
        if own:
            baselines[OURS_DENSE] = min(own)
        exact = _EXACT_FP16 if workload.fp16 else _EXACT_TF32 if self._target.tf32 else _EXACT
        best = min((name for name in exact if name in baselines), key=lambda name: baselines[name], default=_OURS)
        cold = time_repeats(ours.timer(self._flush), 3, _COLD_SECONDS)
        done = workload.dense_flops if is_dense else 2 * workload.nnz * workload.n
        best_us = baselines.get(best, us[_OURS])
        return {
            **case.columns(workload),
            "ours_us": us[_OURS],
            "ours_cold_us": statistics.median(cold),
            "ours_packed_us": None,
            "baselines_us": baselines,
            "best_dense": best,
            "best_dense_us": best_us,
            "speedup": best_us / us[_OURS],
            "effective_gflops": workload.dense_flops / us[_OURS] / 1e3,
            "peak_fraction": done / us[_OURS] / 1e3 / self._peak,
            "rel_error": error,
            "template": config.template,
            "arithmetic": template(config.template).arithmetic,
            "config": str(config),
            "source": source,
            "sm_mhz": clocks and clocks[0],
            "memory_mhz": clocks and clocks[1],
        }

    def _competitors(self, task: Task, x: np.ndarray) -> list[GpuCompetitor]:
        """PyTorch's, which run the layer without bias, residual and activation. Raises Failed when one is wrong."""
        if not self._names:
            return []
        from benchlib.gpu_competitors import gpu_competitors

        bare = msgspec.structs.replace(task.workload, epilogue=Epilogue(), layout_residual=None)
        expected = make_reference(bare, task.weight, None, 0, x)
        found = gpu_competitors(task, x, self._names)
        for other in found:
            error = expected.error(to_physical(bare.layout_out, other.y))
            # Y in float16 is rounded, whoever computed it.
            allowed = max(tolerance_of(other.name), TOLERANCES["float16"] if task.workload.fp16 else 0.0)
            if not error <= allowed:
                raise Failed(f"{other.name}: relative L2 error {error:.2e}")
        return found

    def _trial(self, task: Task, config: Config, reference: Reference) -> tuple[CudaTrial, float]:
        built = build_cuda(task, config, self._target, template)
        trial = CudaTrial(built, [reference], self._target, template(config.template).tolerance)
        checked = trial.check()
        if checked.status != "ok" or checked.error is None:
            raise Failed(f"{config}: {checked.status}: {checked.message}")
        return trial, checked.error


def compile_ahead(cases: Sequence[Case], configs: ConfigSource, target: Target) -> None:
    """Compile what the rows of these cases will want, side by side, before anything is timed: the compiler's cache then
    has it. While something is timed, nothing else may run in this process.
    """

    def sources(case: Case) -> list[Source]:
        try:
            task = case.task(target)
            wanted = dict.fromkeys([configs.choose(task)[0], *configs.dense(task)])
            launches = [packed_kernel(task, config, target, template)[0] for config in wanted]
        except SparseTvmError:
            return []  # its row will say so
        return [launch_source(launch) for launch in launches if isinstance(launch, Launch)]

    with ThreadPoolExecutor(_PACKERS) as pool:
        wanted = [source for found in pool.map(sources, cases) for source in found]
    try:
        compile_sources(wanted, target)
    except CompileError:
        return  # so will the row of that kernel


def tolerance_of(competitor: str) -> float:
    """Relative L2 error that a competitor may have."""
    return _TOLERANCES[competitor]


def peak_gflops(target: Target, clock_mhz: int) -> float:
    """Float32 operations of all multiprocessors: 128 FMAs a clock each."""
    return target.sms * 128 * 2 * clock_mhz / 1e3
