"""One row of bench_kernels: a layer of ours and its competitors, built, checked, and timed in turn."""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sparsetvm.schedules.base import template

from benchlib.case import Case
from benchlib.competitors import competitors_of
from benchlib.configs import ConfigSource
from benchlib.packing import Packing
from sparsetvm.core.config import Config
from sparsetvm.core.target import Target
from sparsetvm.core.task import Task
from sparsetvm.measure.candidate import Trial
from sparsetvm.measure.compile import build
from sparsetvm.measure.reference import (
    TOLERANCE,
    Reference,
    input_shape,
    make_reference,
    output_shape,
    to_logical,
    to_physical,
)
from sparsetvm.measure.timing import TimeCalls, time_interleaved

OURS_DENSE = "sparsetvm-dense"
_ROUNDS = 25
_OURS, _PACKED, _RANDOM = "ours", "ours packed", "ours random"


class Failed(Exception):
    """A kernel cannot be built, or computes something else; the text says which."""


@dataclass(frozen=True)
class _Layer:
    """A layer of ours, ready to run. inputs: logical "x" and, if any, "residual"; error: relative to float64."""

    task: Task
    config: Config
    source: str
    inputs: dict[str, np.ndarray]
    reference: Reference
    trial: Trial
    error: float


class KernelBench:
    """Times cases on one target. names: competitors; peak: measured GFLOP/s of one core."""

    def __init__(self, target: Target, configs: ConfigSource, names: list[str], peak: float) -> None:
        self._target, self._configs, self._names, self._peak = target, configs, names, peak
        self._packing = Packing(target)

    def row(self, case: Case) -> dict[str, Any]:
        """The row of a case. Raises Failed."""
        layer = self._layer(case.task(self._target))
        dense = self._dense_trials(layer)
        timers = {_OURS: layer.trial.timer(None), **{str(c): trial.timer(None) for c, trial in dense.items()}}
        packed = self._packing.around(layer.trial, layer.task.workload, layer.inputs["x"])
        if packed is not None:
            timers[_PACKED] = time_python(packed.run)
            _agree("ours with packing", packed.output(), layer.reference)
        twin = self._layer(case.twin(self._target)) if case.twin is not None else None
        if twin is not None:
            timers[_RANDOM] = twin.trial.timer(None)
        with tempfile.TemporaryDirectory(prefix="sparsetvm-bench-") as folder:
            others = competitors_of(layer.task, layer.inputs, self._names, self._target.threads, Path(folder))
            for other in others:
                _agree(other.name, other.output(), layer.reference)
                timers[other.name] = time_python(other.run)
            times = time_in_turn(timers)
        us = {name: statistics.median(values) for name, values in times.items()}
        for built in (layer, twin):
            if built is not None and built.trial.check().status != "ok":
                raise Failed(f"{built.config}: wrong after it was timed")
        baselines = {other.name: us[other.name] for other in others}
        # Where a dense config is ours, it is its own competitor.
        baselines[OURS_DENSE] = min([us[str(c)] for c in dense] + ([us[_OURS]] if self._is_dense(layer) else []))
        exact = [OURS_DENSE, *(other.name for other in others if other.dense)]
        best = min(exact, key=lambda name: baselines[name])
        return {**self._row(case, layer, us, baselines, best), "spread": _spread(times[_OURS])}

    def _layer(self, task: Task) -> _Layer:
        config, source = self._configs.choose(task)
        workload = task.workload
        inputs = {"x": np.random.default_rng(0).standard_normal(input_shape(workload)).astype(np.float32)}
        reference = make_reference(workload, task.weight, task.bias, 0, inputs["x"])
        if reference.residual is not None:
            inputs["residual"] = to_logical(workload.residual_layout, reference.residual, output_shape(workload))
        trial = self._trial(task, config, reference)
        checked = trial.check()
        if checked.status != "ok" or checked.error is None:
            raise Failed(f"{config}: {checked.status}: {checked.message}")
        return _Layer(task, config, source, inputs, reference, trial, checked.error)

    def _trial(self, task: Task, config: Config, reference: Reference) -> Trial:
        try:
            return Trial(build(task, config, self._target, template), [reference])
        except Exception as problem:
            # Anything may come out of a compiler; it costs this row and not the others.
            raise Failed(f"{config}: {type(problem).__name__}: {problem}") from problem

    def _dense_trials(self, layer: _Layer) -> dict[Config, Trial]:
        """Dense kernels of ours beside the chosen one."""
        trials = {
            config: self._trial(layer.task, config, layer.reference)
            for config in self._configs.dense(layer.task)
            if config != layer.config
        }
        for config, trial in trials.items():
            if trial.check().status != "ok":
                raise Failed(f"{config}: wrong")
        return trials

    def _is_dense(self, layer: _Layer) -> bool:
        return template(layer.config.template).dense

    def _row(
        self, case: Case, layer: _Layer, us: Mapping[str, float], baselines: dict[str, float], best_dense: str
    ) -> dict[str, Any]:
        workload, ours = layer.task.workload, us[_OURS]
        done = workload.dense_flops if self._is_dense(layer) else 2 * workload.nnz * workload.n
        row = {
            **case.columns(workload),
            "layout": f"{_name(workload.layout_in)} -> {_name(workload.layout_out)}",
            "ours_us": ours,
            "ours_packed_us": us.get(_PACKED),
            "baselines_us": baselines,
            "best_dense": best_dense,
            "best_dense_us": baselines[best_dense],
            "speedup": baselines[best_dense] / ours,
            "effective_gflops": workload.dense_flops / ours / 1e3,
            "peak_fraction": done / ours / 1e3 / (self._peak * self._target.threads),
            "rel_error": layer.error,
            "template": layer.config.template,
            "config": str(layer.config),
            "source": layer.source,
        }
        if _RANDOM in us:
            row |= {"random_us": us[_RANDOM], "ratio_to_random": ours / us[_RANDOM]}
        return row


def time_python(run: Callable[[], object]) -> TimeCalls:
    """Times calls from a Python loop; a call costs about 0.1 us more than its work."""

    def time_calls(number: int) -> float:
        begun = time.perf_counter()
        for _ in range(number):
            run()
        return (time.perf_counter() - begun) / number

    return time_calls


def time_in_turn(timers: Mapping[str, TimeCalls]) -> dict[str, list[float]]:
    """Microseconds per call of each, one per round in shuffled order: a noisy minute hits all alike."""
    names, shuffle = list(timers), random.Random(0)
    orders = [shuffle.sample(range(len(names)), len(names)) for _ in range(_ROUNDS)]
    times: dict[str, list[float]] = {name: [] for name in names}
    for at, us in time_interleaved([timers[name] for name in names], orders, 1.0):
        if us is not None:
            times[names[at]].append(us)
    return times


def _spread(times: Sequence[float]) -> float:
    """The middle half of the times, over their median."""
    first, median, third = statistics.quantiles(times, n=4)
    return (third - first) / median


def _agree(name: str, output: np.ndarray, reference: Reference) -> None:
    """Raise Failed when a logical Y is not what the layer must compute."""
    error = reference.error(to_physical(reference.workload.layout_out, output))
    if not error <= TOLERANCE:
        raise Failed(f"{name}: relative L2 error {error:.2e}")


def _name(layout: object) -> str:
    return type(layout).__name__
