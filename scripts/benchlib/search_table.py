"""Tables of measured spaces: every config of a task timed side by side with all others, the best of them once more.

A table is a tuning log. Its records of stage "search" are what a search is told and judged by. They are timed in
shuffled rounds: configs that are timed one after another differ by what else the machine did meanwhile. The lowest of
hundreds of noisy times is still lower than what that config takes the next time, so that the optimum of a table is a
little too good. How much is seen from the fastest ones, which are built and timed again as stage "final".

A table may be replayed on another machine than the one it was measured on. What spaces, defaults and features depend
on (instruction set, sizes of caches) therefore stands in it, in the field `run` of each record: see Pass.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from benchlib.search_tasks import LARGEST, TaskSet, small_candidates
from sparsetvm.core.config import Config
from sparsetvm.core.record import Record
from sparsetvm.core.target import DeviceFingerprint, Target, device_fingerprint
from sparsetvm.core.task import Task
from sparsetvm.errors import UsageError
from sparsetvm.log.journal import append, read_records
from sparsetvm.search.candidates import Candidates, candidates_of
from sparsetvm.search.outcome import RecordMaker
from sparsetvm.search.trial import Measured, Measurer

_ROUNDS = 17
FINALISTS = 64  # how many of the best configs are timed again
_FINAL_ROUNDS = 61
_RUN = "bench_search"  # the field `run` of tables that do not say more
_UNEVEN = 4.0  # longest row over the mean row


class Pass(msgspec.Struct, frozen=True):
    """How a space was measured. target: what for. configs: at most so many of the largest template.

    asked: the same, as the user wanted it; `configs` is smaller where the time did not suffice.
    """

    tasks: TaskSet
    target: Target
    configs: int
    asked: int

    def run(self) -> str:
        """The field `run` of the records."""
        return msgspec.json.encode(self).decode()

    @staticmethod
    def of(record: Record, local: Target) -> Pass:
        """The pass that a record belongs to; `local`, this machine's target, for one that says nothing.

        Raises UsageError for a record of another script, and one that says nothing and comes from another machine.
        """
        if record.run == _RUN:
            if record.device.model != device_fingerprint(local).model:
                raise UsageError(
                    f"a table of {record.device.model} does not say its target",
                    hint="replay it there, or measure it again into a new file",
                )
            return Pass("tuned", local, LARGEST, LARGEST)
        try:
            return msgspec.json.decode(record.run, type=Pass)
        except msgspec.DecodeError:
            raise UsageError(
                f"run '{record.run[:40]}' of a record is none of bench_search", hint="give it a table of its own"
            ) from None


@dataclass(frozen=True)
class Spent:
    """Seconds that timing a space took, and that timing its best configs again took."""

    search: float
    final: float


def read_passes(path: Path, local: Target) -> dict[Pass, list[Record]]:
    """The records of a table by pass, in its order.

    Raises UsageError when they are not all of one machine, LogError when the table cannot be read.
    """
    passes: defaultdict[Pass, list[Record]] = defaultdict(list)
    for record in read_records(path).records:
        passes[Pass.of(record, local)].append(record)
    one_machine(path, [(found.target, record.device) for found, records in passes.items() for record in records])
    return dict(passes)


def one_machine(path: Path, machines: Iterable[tuple[Target, DeviceFingerprint]]) -> None:
    """Raises UsageError when a table has measurements of several machines: they do not compare."""
    found = {(device.model, str(target), target.l1, target.l2) for target, device in machines}
    if len(found) > 1:
        raise UsageError(
            f"{path} would hold measurements of {len(found)} machines: {', '.join(sorted(name for name, *_ in found))}",
            hint="measure into a new file on each",
        )


def space_of(task: Task, target: Target, configs: int) -> Candidates:
    """The thinned space of a task."""
    return small_candidates(candidates_of(task.workload, target), configs)


def is_whole(task: Task, known: Sequence[Record]) -> bool:
    """True when a pass has measured the task to its end."""
    return any(record.workload == task.workload and record.stage == "final" for record in known)


def measure_space(task: Task, wanted: Pass, measurer: Measurer, path: Path, known: Sequence[Record]) -> Spent:
    """Time every config of the task's small space and append the records to `path`, unless `known`, of the same pass,
    has them.
    """
    began = time.monotonic()
    candidates = space_of(task, wanted.target, wanted.configs)
    maker = RecordMaker(device_fingerprint(wanted.target), 0, wanted.run())
    times = {r.config: r.best_us for r in known if r.workload == task.workload and r.stage == "search"}
    configs = [config for choice in candidates.choices for config in choice.space]
    print(f"{task.name}: {task.workload.describe()}: {len(configs)} configs", file=sys.stderr, flush=True)
    if not set(configs) <= times.keys():
        results = measurer.retime(task, configs, _ROUNDS)
        append(path, *(maker.record(task, candidates, result, "search") for result in results))
        times = {result.config: result.best_us for result in results}
    searched = time.monotonic()
    if not is_whole(task, known):
        best = sorted(times, key=times.__getitem__)[:FINALISTS]
        results = measurer.retime(task, best, _FINAL_ROUNDS)
        append(path, *(maker.record(task, candidates, result, "final") for result in results))
    return Spent(searched - began, time.monotonic() - searched)


@dataclass(frozen=True)
class Table:
    """The measured space of one task.

    target: what it was measured for. seen: what a search is told of each config. records: the same as logged. again_us:
    microseconds of the fastest ones when they were built and timed again. asked: configs that were to be measured; more
    than were when the time did not suffice.
    """

    task: Task
    target: Target
    candidates: Candidates
    seen: dict[Config, Measured]
    records: tuple[Record, ...]
    again_us: dict[Config, float]
    asked: int

    @property
    def device(self) -> DeviceFingerprint:
        """The machine that was measured."""
        return self.records[0].device

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


@dataclass(frozen=True)
class Tables:
    """What a file holds of one set of tasks. unfinished: descriptions of tasks of which no space was measured whole."""

    tables: list[Table]
    unfinished: list[str]


def read_tables(path: Path, tasks: TaskSet, local: Target) -> Tables:
    """The tables of a log, in its order: of each task the largest space that was measured whole.

    local: target of this machine, for old tables that do not say theirs.

    Raises UsageError for a log without tables of that set or of several machines, LogError when it cannot be read, and
    UsageError for a task whose space the local templates no longer declare.
    """
    of_task: defaultdict[str, dict[Pass, list[Record]]] = defaultdict(dict)
    for found, records in read_passes(path, local).items():
        if found.tasks == tasks:
            for record in records:
                of_task[record.workload.id].setdefault(found, []).append(record)
    tables, unfinished = [], []
    for passes in of_task.values():
        largest_first = sorted(passes.items(), key=lambda item: -item[0].configs)
        made = [table for done, records in largest_first if (table := _table(records, done, path)) is not None]
        if made:
            tables.append(made[0])
        else:
            unfinished.append(largest_first[0][1][0].workload.describe())
    if not tables:
        raise UsageError(
            f"{path} holds no space of a task of the set '{tasks}' that was measured whole",
            hint="measure them with --only measure",
        )
    return Tables(tables, unfinished)


def _table(records: Sequence[Record], done: Pass, path: Path) -> Table | None:
    """The table of one task in one pass; None when that was not finished."""
    workload = records[0].workload
    logged = {record.config: record for record in records if record.stage == "search"}
    finals = {record.config: record.best_us for record in records if record.stage == "final"}
    task = Task(workload.id, workload, np.zeros((0, 0), np.float32), None)
    candidates = space_of(task, done.target, done.configs)
    if any(not _declares(candidates, record) for record in records):
        raise UsageError(
            f"{path}: the space of {workload.describe()} is not that of the local templates",
            hint="measure it again into a new file",
        )
    if len(logged) < candidates.cardinality or not finals:
        return None
    asked = space_of(task, done.target, done.asked).cardinality
    seen = {config: _seen(record) for config, record in logged.items()}
    return Table(task, done.target, candidates, seen, tuple(logged.values()), finals, asked)


def _declares(candidates: Candidates, record: Record) -> bool:
    """True when the record is of a config of these very spaces."""
    choice = candidates.choice(record.config.template)
    return (
        choice is not None
        and choice.space.fingerprint == record.space
        and choice.space.contains(record.config)
        and choice.version_of(record.config) == record.template_version
    )


def _seen(record: Record) -> Measured:
    return Measured(
        config=record.config,
        status=record.status,
        times_us=record.times_us,
        message=record.message,
        build_seconds=record.build_seconds,
    )
