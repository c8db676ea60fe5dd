"""What the search exchanges with its neighbours: measured trials, and what it needs of `measure` and of the log."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import msgspec

from sparsetvm.core.config import Config
from sparsetvm.core.record import Conditions, Record, Status
from sparsetvm.core.target import DeviceFingerprint
from sparsetvm.core.task import Task
from sparsetvm.core.workload import Workload


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """One config after it was built, run, checked and timed (or failed on the way).

    times_us: medians of the repeats in microseconds per call. error: relative L2 error against the float64 reference,
    None when the outputs were not compared. message: what went wrong, one line. remeasured, conditions,
    other_us: as in a Record. device: what measured it, None for the device of this machine.
    """

    config: Config
    status: Status
    times_us: tuple[float, ...] = ()
    error: float | None = None
    message: str = ""
    build_seconds: float = 0.0
    remeasured: str = ""
    conditions: Conditions | None = None
    device: DeviceFingerprint | None = None
    other_us: float | None = None

    @property
    def ok(self) -> bool:
        return self.status == "ok"

    @property
    def best_us(self) -> float:
        """Median of the repeats; infinity for a failed trial."""
        return statistics.median(self.times_us) if self.ok and self.times_us else float("inf")


OnResult = Callable[[Measured], None]


class Measurer(Protocol):
    """Runs configs. `measure.pool.Measurer` does it on this machine, `search.replay.ReplayMeasurer` from a table."""

    @property
    def jobs(self) -> int:
        """How many configs of a batch are built at once."""
        ...

    @property
    def lanes(self) -> int:
        """How many tasks may be measured at once, each from a thread of its own; it may change at any time."""
        ...

    def measure(self, task: Task, configs: Sequence[Config], on_result: OnResult | None = None) -> list[Measured]:
        """Build, check and time each config; `on_result` is called with each result as soon as it is there."""
        ...

    def retime(self, task: Task, configs: Sequence[Config], rounds: int) -> list[Measured]:
        """Time the configs side by side: `rounds` rounds in shuffled order, one time per round."""
        ...

    def close(self) -> None:
        """Stop all processes."""
        ...


class Decision(Protocol):
    """Why a record is used for a workload. kind: exact, compatible, near or none; source: where the record lies."""

    @property
    def kind(self) -> str: ...
    @property
    def record(self) -> Record | None: ...
    @property
    def source(self) -> str | None: ...
    @property
    def why(self) -> list[str]: ...


Valid = Callable[[Config, int, str], bool]
"""(config, template version, space fingerprint or "") -> the local template and space declare it."""


class RecordIndex(Protocol):
    """The part of the tuning log that the search reads; see log.lookup.RecordIndex."""

    def best(self, workload: Workload, device: DeviceFingerprint, valid: Valid, reuse: bool = True) -> Decision:
        """The record that answers for the task, dense templates included."""
        ...

    def seeds(self, workload: Workload, n: int, device: DeviceFingerprint, valid: Valid) -> Sequence[Config]:
        """Configs that were good for similar workloads."""
        ...

    def training(self, workload: Workload, device: DeviceFingerprint) -> Sequence[Record]:
        """Records for the cost model, those of similar workloads first."""
        ...

    def measured(self, workload: Workload, device: DeviceFingerprint) -> Sequence[Record]:
        """Every record of exactly this task."""
        ...

    def failed_configs(self, workload: Workload, device: DeviceFingerprint, valid: Valid) -> Collection[Config]:
        """Configs that failed on exactly this task."""
        ...
