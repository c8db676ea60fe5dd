"""What a report tells: the tasks of a log, a tuning run or a compiled model, with their trials and what was chosen."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sparsetvm.core.record import Record
from sparsetvm.core.target import DeviceFingerprint, Target, device_fingerprint, host_target, parse_target
from sparsetvm.core.task import Task
from sparsetvm.core.workload import Workload
from sparsetvm.log.maintenance import Plain
from sparsetvm.log.relation import Relation
from sparsetvm.log.standing import Standing, contenders, standings
from sparsetvm.schedules.base import ignores_zeros


@dataclass
class TaskStory:
    """One task on one device.

    records: all of it, oldest first. best, dense: microseconds of the choice and of the best dense kernel, None when
    not measured. config: the choice, "" when nothing worked. source: as in the manifest, "" without one. weight:
    (m, k), when the model is known. count: layers that share it. structure: see LayerReport.
    """

    name: str
    workload: Workload
    device: DeviceFingerprint
    records: list[Record]
    best: float | None = None
    dense: float | None = None
    config: str = ""
    source: str = ""
    count: int = 1
    layers: list[str] = field(default_factory=list)
    weight: np.ndarray | None = None
    structure: str = ""

    @property
    def trials(self) -> list[Record]:
        """Measurements of the search."""
        return [record for record in self.records if record.stage == "search"]

    @property
    def statuses(self) -> Counter[str]:
        return Counter(record.status for record in self.trials)

    @property
    def speedup(self) -> float | None:
        return self.dense / self.best if self.dense and self.best else None


@dataclass
class Story:
    """What a report is about. told: what it was made from, in words; model: its path or name, "" when not known."""

    told: str
    tasks: list[TaskStory]
    model: str = ""
    digest: str = ""
    target: Target | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def records(self) -> list[Record]:
        return [record for task in self.tasks for record in task.records]

    @property
    def devices(self) -> list[DeviceFingerprint]:
        return list(dict.fromkeys(task.device for task in self.tasks if task.records))


def tasks_of(records: Sequence[Record]) -> list[TaskStory]:
    """Records by workload and device, in the order in which they were first measured."""
    groups: defaultdict[tuple[Workload, str], list[Record]] = defaultdict(list)
    for record in sorted(records, key=lambda record: record.time):
        groups[record.workload, record.device.model].append(record)
    return [
        _choose(TaskStory(workload.describe(), workload, members[-1].device, members))
        for (workload, _), members in groups.items()
    ]


def name_tasks(stories: Sequence[TaskStory], tasks: Sequence[Task]) -> list[TaskStory]:
    """Give the tasks of a model their names, layers and weights; those that the model has come first, in its order."""
    order = {task.workload: at for at, task in enumerate(tasks)}
    for story in stories:
        if story.workload in order:
            task = tasks[order[story.workload]]
            story.name, story.count, story.layers, story.weight = task.name, task.count, task.layers, task.weight
    return sorted(stories, key=lambda story: order.get(story.workload, len(order)))


def target_of(device: DeviceFingerprint, threads: int) -> Target:
    """The target that records of a device were measured for, as far as they say: its caches may be typical ones."""
    if device.kind == "cuda":
        return parse_target(f"cuda,{device.isa}", threads)
    host = host_target(threads)
    if host.isa == device.isa and device_fingerprint(host).model == device.model:
        return host
    if device.isa != "avx512":
        return parse_target("cpu,x86-64-v3", threads)
    zen = {"(family 25 ": "znver4", "(family 26 ": "znver5"} if device.vendor == "AuthenticAMD" else {}
    core = next((core for family, core in zen.items() if family in device.model), "x86-64-v4")
    return parse_target(f"cpu,{core}", threads)


def clocks_of(records: Sequence[Record]) -> Mapping[float, int]:
    """How often each clock of a core, in MHz, was noted."""
    noted = (record.conditions.mhz for record in records if record.conditions is not None)
    return Counter(round(mhz) for mhz in noted if mhz)


def _choose(story: TaskStory) -> TaskStory:
    """What `compile` would take of these records alone, and the best dense time."""
    usable = [s for s in standings(map(Plain, story.records), Relation("exact")) if not s.failure]
    best = min(contenders(usable), key=_score, default=None)
    dense = min((s for s in usable if ignores_zeros(s.known.record.config.template)), key=_score, default=None)
    if best is not None:
        story.best, story.config = best.known.record.best_us, str(best.known.record.config)
        story.source = "dense" if ignores_zeros(best.known.record.config.template) else "tuned"
    if dense is not None:
        story.dense = dense.known.record.best_us
    return story


def _score(standing: Standing) -> float:
    return standing.score
