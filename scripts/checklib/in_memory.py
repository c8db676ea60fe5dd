"""Compile a model and run it without writing a library: half of the time of a small model is linking and loading."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import relax

from sparsetvm.build.compile import build_executable
from sparsetvm.build.network import LayerChoice, Network
from sparsetvm.core.config import Config
from sparsetvm.core.target import Target
from sparsetvm.core.task import Task
from sparsetvm.rewrite.prepare import Prepared, prepare
from sparsetvm.runtime.threads import set_threads
from sparsetvm.search.candidates import candidates_of

Choose = Callable[[Task, Target], Config]
_ALIGNMENT = 64


def default_config(task: Task, target: Target) -> Config:
    """What `compile` takes without any record."""
    return candidates_of(task.workload, target).default


def sparse_config(task: Task, target: Target) -> Config:
    """The default of the first template that skips zeros, however few there are."""
    choices = candidates_of(task.workload, target).choices
    return next((choice.default for choice in choices if not choice.dense), choices[0].default)


def any_config(rng: random.Random) -> Choose:
    """A chooser of any template that matches: its default or a random point of its space."""

    def choose(task: Task, target: Target) -> Config:
        choice = rng.choice(candidates_of(task.workload, target).choices)
        return choice.default if rng.random() < 0.5 else choice.space.sample(rng)

    return choose


class InMemory:
    """A compiled model. prepared: its rewritten graph; configs: layer name -> config."""

    def __init__(
        self,
        path: Path,
        target: Target,
        choose: Choose = default_config,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        self.prepared: Prepared = prepare(path, target, shapes)
        chosen = {id(task): choose(task, target) for task in self.prepared.unique_tasks()}
        self.configs = {name: chosen[id(task)] for name, task in self.prepared.tasks.items()}
        choices = {name: LayerChoice(config, "default") for name, config in self.configs.items()}
        executable, _ = build_executable([Network(self.prepared.graph, self.prepared.tasks, choices)], target)
        self._main = relax.VirtualMachine(executable, tvm.cpu())["main"]
        self._threads = target.threads

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Named arrays in, named arrays out."""
        graph = self.prepared.graph
        set_threads(self._threads)
        found = self._main(*(_aligned(feed[name]) for name in graph.inputs))
        results = [found] if isinstance(found, tvm_ffi.Tensor) else list(found)
        arrays = [np.array(np.from_dlpack(result)) for result in results]
        return dict(zip(graph.output_names, arrays, strict=True))


def _aligned(array: np.ndarray) -> Any:
    raw = np.zeros(array.nbytes + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    aligned = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    np.copyto(aligned, array)
    return tvm_ffi.from_dlpack(aligned)
