"""One `tune` command: the log, the measurer and the tuner around the tasks of a model."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sparsetvm.analysis.layers import why_dense
from sparsetvm.core.record import Record
from sparsetvm.core.results import Event, Progress, TaskReport, TuneReport
from sparsetvm.core.target import DeviceFingerprint, Target, device_fingerprint
from sparsetvm.core.task import Task
from sparsetvm.errors import UsageError, did_you_mean
from sparsetvm.log.journal import append, check_writable, journal_path
from sparsetvm.log.location import log_dir as find_log_dir
from sparsetvm.log.lookup import RecordIndex
from sparsetvm.schedules.base import arithmetic_of, ignores_zeros
from sparsetvm.search.budget import TuneOptions
from sparsetvm.search.candidates import candidates_of, validator
from sparsetvm.search.outcome import TaskOutcome, TuningInterrupted
from sparsetvm.search.trial import Measurer
from sparsetvm.search.tuner import tune_tasks


class TuneRun:
    """A run over some tasks. `index` holds the records of the log, those of this run too; `outcomes` what was chosen.

    model: what the report calls the tasks together; each task is in `tasks` once. open_measurer: repeats -> what
    measures configs on the device, opened only when something is tuned. device: what that is, None for the target's
    device in this machine.
    """

    def __init__(
        self,
        model: str,
        tasks: list[Task],
        target: Target,
        options: TuneOptions,
        records: Sequence[Path | str],
        log_dir: Path | str | None,
        seed: int,
        open_measurer: Callable[[int], Measurer],
        progress: Progress,
        device: DeviceFingerprint | None = None,
    ) -> None:
        self.device = device or device_fingerprint(target)
        self.model, self.tasks, self.target, self.options = model, tasks, target, options
        self.seed, self.open_measurer, self.progress = seed, open_measurer, progress
        self.folder = find_log_dir(log_dir)
        self.journal = journal_path(self.folder, self.device)
        self.index = RecordIndex.open(self.folder, list(records))
        self.outcomes: list[TaskOutcome] = []

    def tune(self, selection: str) -> TuneReport:
        """Tune the selected tasks; `interrupted` is set in the report when Ctrl-C ended it."""
        check_writable(self.folder)
        chosen = select(self.tasks, selection)
        interrupted = False
        self._report_bad_lines()
        self.progress(Event(kind="start", message=f"{len(chosen)} tasks", data=self._plan(chosen)))
        begun = time.monotonic()
        measurer = self.open_measurer(self.options.preset.repeats)
        try:
            self.outcomes = tune_tasks(
                chosen, self.target, self.options, self.index, self._append, measurer, self.progress, self.seed,
                device=self.device,
            )  # fmt: skip
        except TuningInterrupted as stopped:
            self.outcomes, interrupted = stopped.outcomes, True
        finally:
            measurer.close()
        reports = [report_of(outcome, self.target) for outcome in self.outcomes]
        return self._report(reports, time.monotonic() - begun, interrupted)

    def _plan(self, tasks: Sequence[Task]) -> dict[str, Any]:
        """What a view of the run needs: its limits (each: trials of a task where neither is given) and its tasks."""
        options = self.options
        limits = {"trials": options.trials, "seconds": options.seconds}
        if not any(limits.values()):
            limits = {"each": options.preset.trials}
        rows = [
            {
                "name": task.name,
                "pattern": task.workload.pattern.describe(),
                "sparsity": task.workload.pattern.sparsity,
                "count": task.count,
            }
            for task in tasks
        ]
        told = {"tasks": len(tasks), "log": str(self.journal), "seed": self.seed, "plan": rows, **limits}
        return {name: value for name, value in told.items() if value is not None}

    def dry(self, selection: str) -> TuneReport:
        """What `tune` would do, without measuring: the source of each task's config as it stands in the log."""
        self._report_bad_lines()
        reports = []
        for task in select(self.tasks, selection):
            candidates = candidates_of(task.workload, self.target)
            decision = self.index.best(task.workload, self.device, validator(candidates), self.options.reuse)
            known = decision.record if decision.kind in ("exact", "compatible") else None
            source = (decision.source if decision.source == "shipped" else decision.kind) if known else "default"
            config = known.config if known else candidates.default
            outcome = TaskOutcome(task, config, source, known.best_us if known else None)  # type: ignore[arg-type]
            reports.append(report_of(outcome, self.target))
        return self._report(reports, 0.0, False)

    def _report_bad_lines(self) -> None:
        for note in self.index.skipped():
            self.progress(Event(kind="note", message=note))

    def _append(self, records: list[Record]) -> None:
        append(self.journal, *records)
        for record in records:
            self.index.add(record)

    def _report(self, reports: list[TaskReport], seconds: float, interrupted: bool) -> TuneReport:
        statuses: dict[str, int] = {}
        for outcome in self.outcomes:
            for status, count in outcome.statuses.items():
                statuses[status] = statuses.get(status, 0) + count
        return TuneReport(
            model=self.model,
            target=str(self.target),
            device=self.device.model,
            threads=self.target.threads,
            trials_run=sum(outcome.trials for outcome in self.outcomes),
            reused=sum(report.source in ("exact", "compatible", "shipped") for report in reports),
            seconds=seconds,
            log=str(self.journal),
            seed=self.seed,
            statuses=statuses,
            tasks=reports,
            interrupted=interrupted,
            run=self.options.run,
        )


def report_of(outcome: TaskOutcome, target: Target) -> TaskReport:
    """The row of one outcome."""
    pattern, arithmetic = outcome.task.workload.pattern, arithmetic_of(outcome.config.template)
    stays_dense = pattern.kind != "dense" and ignores_zeros(outcome.config.template) and outcome.best_us
    known = outcome.best_us is not None and outcome.dense_us is not None
    return TaskReport(
        name=outcome.task.name,
        workload=outcome.task.workload.describe(),
        pattern=pattern.describe(),
        sparsity=pattern.sparsity,
        count=outcome.task.count,
        dense_us=outcome.dense_us,
        best_us=outcome.best_us,
        speedup=outcome.dense_us / outcome.best_us if known and outcome.dense_us and outcome.best_us else None,
        trials=outcome.trials,
        source=outcome.source,
        config=str(outcome.config),
        arithmetic=arithmetic,
        rank_correlations=outcome.rank_correlations,
        reason=why_dense(outcome.task.workload, target, tensor_cores=arithmetic != "float32") if stays_dense else "",
    )


def select(tasks: list[Task], selection: str) -> list[Task]:
    """Tasks by "all" or by comma-separated names, numbers (from 1) and ranges. Raises UsageError for unknown ones."""
    if selection == "all":
        return tasks
    names = {name: task for task in tasks for name in (task.name, *task.layers)}
    chosen: dict[int, Task] = {}
    for part in (piece.strip() for piece in selection.split(",")):
        first, dash, last = part.partition("-")
        if part in names:
            chosen[id(names[part])] = names[part]
        elif first.isdecimal() and (last.isdecimal() or not dash):
            low, high = int(first), int(last or first)
            if not 1 <= low <= high <= len(tasks):
                raise UsageError(f"--tasks {part}: the model has tasks 1 to {len(tasks)}", hint="see --tasks list")
            chosen.update((id(task), task) for task in tasks[low - 1 : high])
        else:
            raise UsageError(f"--tasks: no task '{part}'{did_you_mean(part, names)}", hint="see --tasks list")
    return [task for task in tasks if id(task) in chosen]
