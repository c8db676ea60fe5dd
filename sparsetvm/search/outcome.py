"""What a tuning run hands back, and the records it writes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Literal

from sparsetvm.core.config import Config
from sparsetvm.core.record import Record
from sparsetvm.core.target import DeviceFingerprint, toolchain_fingerprint
from sparsetvm.core.task import Task
from sparsetvm.errors import Interrupted
from sparsetvm.search.candidates import Candidates
from sparsetvm.search.trial import Measured

Origin = Literal["tuned", "exact", "compatible", "shipped", "default", "dense"]
RecordStage = Literal["search", "final", "check"]


@dataclass
class TaskOutcome:
    """The config chosen for a task.

    source: as in TaskReport. best_us, dense_us: microseconds, None when not measured. trials: search trials of this
    run; checks: its measurements that only confirmed a known config. statuses: of the trials. why: one sentence.
    rank_correlations: after each round of the search, Spearman of the cost model's last predictions and what was
    measured after them, None while too few were predicted.
    """

    task: Task
    config: Config
    source: Origin
    best_us: float | None = None
    dense_us: float | None = None
    trials: int = 0
    checks: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    why: str = ""
    rank_correlations: list[float | None] = field(default_factory=list)

    @property
    def rank_correlation(self) -> float | None:
        """That after the last round."""
        return self.rank_correlations[-1] if self.rank_correlations else None


class TuningInterrupted(Interrupted):
    """Ctrl-C during tuning; `outcomes` holds what is known of each task that has a valid measurement."""

    def __init__(self, outcomes: list[TaskOutcome]) -> None:
        super().__init__(
            "interrupted; everything measured so far is in the log", hint="run the same command again to go on"
        )
        self.outcomes = outcomes


@dataclass(frozen=True)
class RecordMaker:
    """Turns measurements into records of one run."""

    device: DeviceFingerprint
    seed: int
    run: str

    def record(self, task: Task, candidates: Candidates, measured: Measured, stage: RecordStage) -> Record:
        """The record of one measurement, stamped with the current time."""
        choice = candidates.choice(measured.config.template)
        return Record(
            workload=task.workload,
            config=measured.config,
            status=measured.status,
            device=measured.device or self.device,
            toolchain=toolchain_fingerprint(),
            template_version=0 if choice is None else choice.version_of(measured.config),
            space="" if choice is None else choice.space.fingerprint,
            times_us=measured.times_us if measured.ok else (),
            error=measured.error,
            message="".join(c if c.isprintable() else " " for c in measured.message),
            build_seconds=measured.build_seconds,
            stage=stage,
            seed=self.seed,
            run=self.run,
            time=datetime.now(timezone.utc).isoformat(timespec="microseconds"),
            remeasured=measured.remeasured,
            conditions=measured.conditions,
            other_us=measured.other_us,
        )


def count_statuses(results: list[Measured]) -> dict[str, int]:
    """How often each status occurred."""
    return dict(Counter(result.status for result in results))
