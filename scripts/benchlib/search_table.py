"""Tables of measured spaces: every config of a task timed as a search times it, the best of them once more.

A table is a tuning log. Its records of stage "search" are what a search sees. The fastest ones are timed again, side by
side in shuffled rounds, as stage "final": by those times the configs are judged, because the lowest of hundreds of
noisy times is lower than the time of any config.
"""

from __future__ import annotations

import random
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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

_BATCH = 48
REPEATS = 5  # timings of a config, as by the default effort
_RETIMED, _ROUNDS = 32, 11
_RUN = "bench_search"


def measure_space(task: Task, target: Target, measurer: Measurer, path: Path, known: Sequence[Record]) -> None:
    """Measure every config of the task's small space that `known` lacks, then the best once more; append to `path`."""
    candidates = small_candidates(candidates_of(task.workload, target))
    maker = RecordMaker(device_fingerprint(target), 0, _RUN)
    mine = [record for record in known if record.workload == task.workload]
    times = {record.config: record.best_us for record in mine if record.stage == "search"}
    # Shuffled, so that a change of the machine's speed does not look like the effect of a knob.
    left = [config for choice in candidates.choices for config in choice.space if config not in times]
    random.Random(task.workload.id).shuffle(left)  # noqa: S311
    for start in range(0, len(left), _BATCH):
        results = measurer.measure(task, left[start : start + _BATCH])
        append(path, *(maker.record(task, candidates, result, "search") for result in results))
        times.update((result.config, result.best_us) for result in results)
        print(f"{task.name}: {len(times)} of {candidates.cardinality}", end="\r", file=sys.stderr, flush=True)
    if left or not any(record.stage == "final" for record in mine):
        best = sorted(times, key=times.__getitem__)[:_RETIMED]
        results = measurer.retime(task, best, _ROUNDS)
        append(path, *(maker.record(task, candidates, result, "final") for result in results))
    print(f"{task.name}: {candidates.cardinality} configs", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Table:
    """The measured space of one task. seen: what a search is told of each config. judged_us: the time that counts."""

    task: Task
    candidates: Candidates
    records: tuple[Record, ...]
    seen: dict[Config, Measured]
    judged_us: dict[Config, float]

    @property
    def optimum_us(self) -> float:
        return min(self.judged_us.values())


def read_tables(path: Path, target: Target) -> list[Table]:
    """The tables of a log, in its order. Raises UsageError for a task whose space is not whole."""
    of_task: defaultdict[str, list[Record]] = defaultdict(list)
    for record in read_records(path).records:
        of_task[record.workload.id].append(record)
    if not of_task:
        raise UsageError(f"{path} holds no measurements", hint="leave out --only replay to measure them")
    return [_table(records, target, path) for records in of_task.values()]
