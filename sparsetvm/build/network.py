"""What is compiled: a network for one size, with a choice for each of its layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from sparsetvm.core.arithmetic import Arithmetic
from sparsetvm.core.buckets import Dynamic
from sparsetvm.core.config import Config
from sparsetvm.core.graph import Graph
from sparsetvm.core.task import Task
from sparsetvm.schedules.base import arithmetic_of


class LayerChoice(msgspec.Struct, frozen=True):
    """Which config a layer got, where it came from (TaskReport.source) and why; times in microseconds."""

    config: Config
    source: str
    best_us: float | None = None
    dense_us: float | None = None
    why: str = ""

    @property
    def arithmetic(self) -> Arithmetic:
        """What the layer's kernel computes in."""
        return arithmetic_of(self.config.template)


@dataclass(frozen=True)
class Network:
    """A graph after `rewrite`, with the task and the choice of each layer by name."""

    graph: Graph
    tasks: Mapping[str, Task]
    choices: Mapping[str, LayerChoice]

    @property
    def configs(self) -> dict[str, Config]:
        """The config of each layer."""
        return {name: choice.config for name, choice in self.choices.items()}


@dataclass(frozen=True)
class Opened:
    """The dimension that stays open, and its axis in each input and output of the model that has it."""

    dynamic: Dynamic
    axes: Mapping[str, int] = field(default_factory=dict)
