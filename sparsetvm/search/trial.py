"""What the search exchanges with its neighbours: measured trials, and what it needs of `measure` and of the log."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from sparsetvm.core.config import Config
from sparsetvm.core.record import Record, Status
from sparsetvm.core.target import DeviceFingerprint
from sparsetvm.core.task import Task
from sparsetvm.core.workload import Workload


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """One config after it was built, run, checked and timed (or failed on the way).

    times_us: medians of the repeats in microseconds per call. error: relative L2 error against the float64 reference,
    None when the outputs were not compared. message: what went wrong, one line.
    """

    config: Config
    status: Status
    times_us: tuple[float, ...] = ()
    error: float | None = None
    message: str = ""
    build_seconds: float = 0.0

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
    """Why a record is used for a workload. kind: exact, compatible, near or none."""

    @property
    def kind(self) -> str: ...
    @property
    def record(self) -> Record | None: ...
    @property
    def source(self) -> str: ...
    @property
    def why(self) -> str: ...


class RecordIndex(Protocol):
    """The part of the tuning log that the search reads."""

    def best(
        self, workload: Workload, device: DeviceFingerprint, valid: Callable[[Record], bool], reuse: bool = True
    ) -> Decision: ...
    def seeds(self, workload: Workload, n: int) -> Sequence[Config]: ...
    def training(self) -> Sequence[Record]: ...
    def failed_configs(self, workload: Workload) -> frozenset[Config]: ...
