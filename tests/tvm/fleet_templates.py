"""Templates of a simulated device: kernels that sleep, and a few that crash. Workers import this module by name."""

from __future__ import annotations

import numpy as np
from fault_templates import COPIES, Faulty, matmul
from sparsetvm.schedules.base import Packed

from sparsetvm.core.config import Config
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload
from sparsetvm.space.knobs import Choice
from sparsetvm.space.space import Space

CRASHES_EVERY = 20


def crashes(config: Config) -> bool:
    """True for one config in twenty."""
    return int(config["copy"]) % CRASHES_EVERY == 7


class Sleeper(Faulty):
    """A matmul that sleeps for 20 ms; one config in twenty crashes."""

    name = "test.sleeper"

    def space(self, workload: Workload, target: Target) -> Space:
        return Space(self.name, (Choice("copy", tuple(range(COPIES))),))

    def default(self, workload: Workload, target: Target) -> Config:
        return Config.of(self.name, copy=0)

    def pack(self, weight, bias, workload, config, target) -> Packed:
        return Packed((np.ascontiguousarray(weight.reshape(-1)),))

    def kernel(self, workload, config, packed, target, symbol):
        return matmul(workload.n, workload.m, workload.k, "segfault" if crashes(config) else "slow", symbol)


class DenseSleeper(Sleeper):
    """What every task also has: a dense template."""

    name = "test.dense_sleeper"
    dense = True

    def space(self, workload: Workload, target: Target) -> Space:
        return Space(self.name, (Choice("copy", (0, 1)),))


TEMPLATES = {"test.sleeper": Sleeper(), "test.dense_sleeper": DenseSleeper()}
