"""Tables of measured spaces: every config of a task timed side by side with all others, the best of them once more.

A table is a tuning log. Its records of stage "search" are what a search is told and judged by. They are timed in
shuffled rounds: configs that are timed one after another differ by what else the machine did meanwhile. The lowest of
hundreds of noisy times is still lower than what that config takes the next time, so that the optimum of a table is a
little too good. How much is seen from the fastest ones, which are built and timed again as stage "final".
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchlib.search_tasks import small_candidates
from sparsetvm.core.config import Config
from sparsetvm.core.record import Record
from sparsetvm.core.target import Target, device_fingerprint
from sparsetvm.core.task import Task
from sparsetvm.errors import UsageError
from sparsetvm.log.journal import append, read_records
from sparsetvm.search.candidates import Candidates, candidates_of
from sparsetvm.search.outcome import RecordMaker
from sparsetvm.search.trial import Measured, Measurer

_ROUNDS = 17
_FINALISTS, _FINAL_ROUNDS = 64, 61
_RUN = "bench_search"
_UNEVEN = 4.0  # longest row over the mean row


def measure_space(task: Task, target: Target, measurer: Measurer, path: Path, known: Sequence[Record]) -> None:
    """Time every config of the task's small space and append the records to `path`, unless `known` has them."""
    candidates = small_candidates(candidates_of(task.workload, target))
    maker = RecordMaker(device_fingerprint(target), 0, _RUN)
    times = {r.config: r.best_us for r in known if r.workload == task.workload and r.stage == "search"}
    configs = [config for choice in candidates.choices for config in choice.space]
    print(f"{task.name}: {task.workload.describe()}: {len(configs)} configs", file=sys.stderr, flush=True)
    if not set(configs) <= times.keys():
        results = measurer.retime(task, configs, _ROUNDS)
        append(path, *(maker.record(task, candidates, result, "search") for result in results))
        times = {result.config: result.best_us for result in results}
    if not any(r.workload == task.workload and r.stage == "final" for r in known):
        best = sorted(times, key=times.__getitem__)[:_FINALISTS]
        results = measurer.retime(task, best, _FINAL_ROUNDS)
        append(path, *(maker.record(task, candidates, result, "final") for result in results))


@dataclass(frozen=True)
class Table:
    """The measured space of one task.

    seen: what a search is told of each config. records: the same as logged. again_us: microseconds of the fastest ones
    when they were built and timed again.
    """

    task: Task
    candidates: Candidates
    seen: dict[Config, Measured]
    records: tuple[Record, ...]
    again_us: dict[Config, float]

    @property
    def name(self) -> str:
        workload = self.task.workload
        pattern = workload.pattern.describe()
        if pattern == "unstructured" and workload.pattern.row_imbalance > _UNEVEN:
            pattern = "uneven rows"
        return f"{workload.describe()} {pattern} d={workload.pattern.density:.2f}"

    @property
    def best(self) -> Config:
        """The config with the lowest time."""
        return min(self.seen, key=lambda config: self.seen[config].best_us)

    @property
    def optimum_us(self) -> float:
        return self.seen[self.best].best_us

    def slower(self, config: Config) -> float:
        """Time of a config over the optimum, infinity for one that failed."""
        return self.seen[config].best_us / self.optimum_us


def read_tables(path: Path, target: Target) -> list[Table]:
    """The tables of a log, in its order.

    Raises UsageError for a log without tables, LogError when it cannot be read, and UsageError for a task whose space
    the local templates no longer declare, or was not measured whole.
    """
    of_task: defaultdict[str, list[Record]] = defaultdict(list)
    for record in read_records(path).records:
        of_task[record.workload.id].append(record)
    if not of_task:
        raise UsageError(f"{path} holds no measured space", hint="measure them with --only measure")
    return [_table(records, target, path) for records in of_task.values()]


def _table(records: Sequence[Record], target: Target, path: Path) -> Table:
    workload = records[0].workload
    logged = {record.config: record for record in records if record.stage == "search"}
    finals = {record.config: record.best_us for record in records if record.stage == "final"}
    candidates = small_candidates(candidates_of(workload, target))
    wanted = {config for choice in candidates.choices for config in choice.space}
    outdated = any(record.template_version != _version(candidates, record.config) for record in records)
    if outdated or wanted != logged.keys() or not finals.keys() <= wanted or not finals:
        raise UsageError(
            f"{path}: the space of {workload.describe()} is not that of the local templates, or not whole",
            hint="measure it again into a new file",
        )
    task = Task(workload.id, workload, np.zeros((0, 0), np.float32), None)
    return Table(task, candidates, {c: _seen(r) for c, r in logged.items()}, tuple(logged.values()), finals)


def _version(candidates: Candidates, config: Config) -> int | None:
    choice = candidates.choice(config.template)
    return None if choice is None else choice.version


def _seen(record: Record) -> Measured:
    return Measured(
        config=record.config,
        status=record.status,
        times_us=record.times_us,
        message=record.message,
        build_seconds=record.build_seconds,
    )
