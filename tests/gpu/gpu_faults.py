"""Templates whose kernels break the GPU's context or never end. Workers import this module by name."""

from __future__ import annotations

from dataclasses import replace

from cuda_templates import Rows
from sparsetvm.schedules.base import Packed
from sparsetvm.schedules.cuda.launch import Launch

from sparsetvm.core.config import Config
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload
from sparsetvm.space.knobs import Choice
from sparsetvm.space.space import Space

BLOCKS = {"good": 64, "outside": 256, "endless": 512}  # threads: other kernels also in their launch


class Faulty(Rows):
    """A dense product whose knob says what goes wrong."""

    name = "cuda.test_faulty"
    dense = False

    def space(self, workload: Workload, target: Target) -> Space:
        return Space(self.name, (Choice("kind", tuple(BLOCKS)), Choice("copy", (0, 1, 2))))

    def default(self, workload: Workload, target: Target) -> Config:
        return Config.of(self.name, kind="good", copy=0)

    def kernel(self, workload: Workload, config: Config, packed: Packed, target: Target, symbol: str) -> Launch:
        kind = config.str("kind")
        made = super().kernel(workload, Config.of(Rows.name, block=BLOCKS[kind]), packed, target, symbol)
        return replace(made, defines=(*made.defines, ("SP_FAULT", list(BLOCKS).index(kind))))


class Quick(Faulty):
    """The part of its space that is searched: nothing that only ends at the time limit."""

    def space(self, workload: Workload, target: Target) -> Space:
        return Space(self.name, (Choice("kind", ("good", "outside")), Choice("copy", (0, 1, 2))))


class Honest(Rows):
    """The same without faults, as a second template."""

    def space(self, workload: Workload, target: Target) -> Space:
        return Space(self.name, (Choice("block", (64,)),))


TEMPLATES = {Faulty.name: Faulty(), Honest.name: Honest()}
