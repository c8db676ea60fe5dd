"""A synthetic space with known costs, and a log in memory."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field

import numpy as np
from sparsetvm.schedules.base import Packed, Template

from sparsetvm.core.config import Config
from sparsetvm.core.layout import Tiled
from sparsetvm.core.pattern import PatternSummary
from sparsetvm.core.record import Record
from sparsetvm.core.target import Target
from sparsetvm.core.task import Task
from sparsetvm.core.workload import Epilogue, Workload
from sparsetvm.search.trial import Measured
from sparsetvm.space.knobs import Choice, Ordered
from sparsetvm.space.space import Space

TARGET = Target("cpu", "skylake-avx512", "avx512")


class FakeTemplate(Template):
    """A template with a space and nothing to build."""

    version = 1

    def matches(self, workload: Workload, target: Target) -> bool:
        return self.dense or workload.pattern.kind != "dense"

    def pack(self, weight, bias, workload, config, target) -> Packed:
        raise AssertionError("the search builds nothing")

    def kernel(self, workload, config, packed, target, symbol):
        raise AssertionError("the search builds nothing")


class Sparse(FakeTemplate):
    name = "test.sparse"

    def space(self, workload: Workload, target: Target) -> Space:
        return Space(
            self.name,
            (
                Ordered("rows", (4, 8, 12, 16, 20, 24, 28, 30)),
                Ordered("k_block", (32, 64, 96, 128, 192, 256, 384, 512)),
                Ordered("groups", (1, 2, 4, 8, 16, 32, 64)),
                Choice("order", ("k", "rows", "tiles")),
            ),
        )

    def default(self, workload: Workload, target: Target) -> Config:
        return Config.of(self.name, rows=12, k_block=96, groups=4, order="k")


class Dense(FakeTemplate):
    name = "test.dense"
    dense = True

    def space(self, workload: Workload, target: Target) -> Space:
        return Space(self.name, (Ordered("mr", (2, 4, 6, 8)), Ordered("nr", (1, 2, 3, 4))))

    def default(self, workload: Workload, target: Target) -> Config:
        return Config.of(self.name, mr=4, nr=2)


def templates(workload: Workload, target: Target) -> list[Template]:
    return [t for t in (Sparse(), Dense()) if t.matches(workload, target)]


def make_task(
    name: str = "fc1", m: int = 256, k: int = 512, n: int = 64, density: float = 0.1, digest: str = "d0",
    count: int = 1, kind: str = "unstructured",
) -> Task:  # fmt: skip
    pattern = PatternSummary(kind, (1, 1), density, 1.3, 0, digest)
    workload = Workload("matmul", m, k, n, Tiled(n, k, 16), Tiled(n, m, 16), Epilogue(), pattern)
    return Task(name, workload, np.zeros((1, 1), np.float32), None, [f"{name}.{i}" for i in range(count)])


def noise(task: Task, config: Config) -> float:
    digest = hashlib.sha256(f"{task.workload.id} {config}".encode()).digest()
    return 1.0 + 0.03 * (digest[0] / 255 - 0.5)


def cost_us(task: Task, config: Config) -> float:
    """A valley: best near 28 rows, a K block that fits L1, pieces of moderate size; every knob interacts."""
    w = task.workload
    base = w.dense_flops * 1e-5
    if config.template == "test.dense":
        return base * (1 + abs(config.int("mr") - 6) / 6 + abs(config.int("nr") - 4) / 8) * noise(task, config)
    rows, block, groups = config.int("rows"), config.int("k_block"), config.int("groups")
    loads = 1 + 6 / rows + (0.8 if rows > 28 else 0)
    cache = 1 + 0.5 * abs(math.log2(block / 256)) ** 1.5
    piece = math.log2(rows * block * groups * w.pattern.density / 600)
    fetch = 1 + 0.15 * piece**2
    order = {"k": 1.0, "rows": 1.25 if groups < 8 else 0.9, "tiles": 1.6}[config.str("order")]
    return base * (0.05 + w.pattern.density) * loads * cache * fetch * order * noise(task, config)


def measured(task: Task, config: Config) -> Measured:
    """Never fails, but for 30 rows in K order, which crash."""
    if config.template == "test.sparse" and config["rows"] == 30 and config["order"] == "k":
        return Measured(config=config, status="crash", message="worker died of SIGSEGV")
    time = cost_us(task, config)
    return Measured(config=config, status="ok", times_us=(time * 0.99, time, time * 1.02), error=1e-7)


@dataclass
class FakeDecision:
    kind: str = "none"
    record: Record | None = None
    source: str | None = None
    why: list[str] = field(default_factory=list)


@dataclass
class FakeIndex:
    """A log in memory with the interface of log.lookup.RecordIndex; `decisions` are by workload id."""

    records: list[Record] = field(default_factory=list)
    decisions: dict[str, FakeDecision] = field(default_factory=dict)
    seeded: list[Config] = field(default_factory=list)

    def best(self, workload, device, valid, reuse=True):
        return self.decisions.get(workload.id, FakeDecision()) if reuse else FakeDecision()

    def seeds(self, workload, n, device, valid):
        return [c for c in self.seeded if valid(c, 1, "")][:n]

    def training(self, workload, device):
        return list(self.records)

    def measured(self, workload, device):
        return [r for r in self.records if r.workload == workload]

    def failed_configs(self, workload, device, valid):
        return {r.config for r in self.records if r.workload == workload and r.status != "ok"}
