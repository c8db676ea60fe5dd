"""Tuning on several devices: tasks are measured side by side, and nothing is lost, doubled or beyond the limits."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence

import pytest
from search_cases import TARGET, FakeIndex, make_task, measured, templates

from sparsetvm.core.config import Config
from sparsetvm.core.record import Record
from sparsetvm.core.task import Task
from sparsetvm.errors import EnvironmentProblem
from sparsetvm.search.budget import TuneOptions
from sparsetvm.search.outcome import TaskOutcome, TuningInterrupted
from sparsetvm.search.replay import ReplayMeasurer
from sparsetvm.search.side_by_side import SideBySide
from sparsetvm.search.trial import Measured
from sparsetvm.search.tuner import tune_tasks


class Devices(ReplayMeasurer):
    """Several devices. meet: the first measurements wait until as many are at work, and fail when they never are."""

    def __init__(self, lanes: int, meet: int = 0) -> None:
        super().__init__(measured)
        self.lanes = lanes
        self.most, self.now = 0, Counter[str]()
        self._lock = threading.Lock()
        self._meet = threading.Barrier(meet) if meet else None

    def measure(self, task, configs, on_result=None):
        with self._lock:
            self.now[task.name] += 1
            self.most = max(self.most, self.now.total())
            assert self.now[task.name] == 1, "a task is measured once at a time"
        if self._meet is not None and self._meet.n_waiting < self._meet.parties:
            self._meet.wait(20)
            self._meet = None
        try:
            return super().measure(task, configs, on_result)
        finally:
            with self._lock:
                self.now[task.name] -= 1


def tasks_of(count: int) -> list[Task]:
    return [make_task(f"layer{at}", m=64 * (at + 1)) for at in range(count)]


def tune(devices: ReplayMeasurer, tasks: Sequence[Task], **options: object) -> tuple[list[TaskOutcome], list[Record]]:
    journal: list[Record] = []
    outcomes = tune_tasks(
        tasks, TARGET, TuneOptions(effort="quick", run="test", **options), FakeIndex(), journal.extend, devices,  # type: ignore[arg-type]
        lambda event: None, 0, templates=templates,
    )  # fmt: skip
    return outcomes, journal


def test_as_many_tasks_as_devices_are_measured_at_once() -> None:
    devices = Devices(lanes=3, meet=3)
    tune(devices, tasks_of(5))
    assert devices.most == 3


def test_every_trial_is_recorded_once_and_counted() -> None:
    devices = Devices(lanes=3)
    outcomes, journal = tune(devices, tasks_of(4), early_stopping=99)
    trials = [(record.workload.m, record.config) for record in journal if record.stage == "search"]
    assert len(trials) == len(set(trials)) == len(devices.asked) == sum(outcome.trials for outcome in outcomes)
    assert {record.workload.m for record in journal if record.stage == "final"} == {64, 128, 192, 256}


def test_limit_on_trials_counts_those_that_are_under_way() -> None:
    _, journal = tune(Devices(lanes=3), tasks_of(4), trials=30, early_stopping=99)
    assert sum(record.stage == "search" for record in journal) == 30


def test_winners_do_not_depend_on_how_many_devices_there_are() -> None:
    alone, _ = tune(Devices(lanes=1), tasks_of(3))
    together, _ = tune(Devices(lanes=3), tasks_of(3))
    assert [outcome.source for outcome in together] == [outcome.source for outcome in alone]
    for one, other in zip(alone, together, strict=True):
        assert other.best_us == pytest.approx(one.best_us, rel=0.2)


def test_devices_may_go_and_come() -> None:
    class Changing(Devices):
        counts = iter([1, 3, 2] * 500)

        @property
        def lanes(self) -> int:
            return next(self.counts)

        @lanes.setter
        def lanes(self, value: int) -> None:
            pass

    outcomes, journal = tune(Changing(lanes=1), tasks_of(4))
    assert len(outcomes) == 4
    assert sum(record.stage == "search" for record in journal) == sum(outcome.trials for outcome in outcomes)


def test_fault_of_the_machine_ends_the_tune_and_keeps_what_was_measured() -> None:
    class Broken(Devices):
        def measure(self, task, configs, on_result=None):
            if task.name == "layer1":
                raise EnvironmentProblem("no worker answers", hint="start one")
            return super().measure(task, configs, on_result)

    with pytest.raises(EnvironmentProblem, match="no worker answers"):
        tune(Broken(lanes=2), tasks_of(3))


def test_ctrl_c_closes_the_measurer_and_keeps_what_is_known() -> None:
    class Interrupting(Devices):
        def measure(self, task, configs, on_result=None):
            if self.asked and task.name == "layer0":
                raise KeyboardInterrupt
            return super().measure(task, configs, on_result)

    devices = Interrupting(lanes=2)
    with pytest.raises(TuningInterrupted):
        tune(devices, tasks_of(2), early_stopping=99)
    assert devices.closed


def test_findings_of_a_task_end_with_all_of_its_results() -> None:
    side, task = SideBySide(Devices(lanes=1)), make_task()
    configs = [Config.of("test.sparse", rows=12, k_block=96, groups=4, order=order) for order in ("k", "rows")]
    side.measure(7, task, configs)
    assert 7 in side
    found: list[Measured | None] = []
    while len(side):
        finding = side.next()
        assert finding.at == 7
        found.append(finding.result)
    assert [result.config for result in found if result] == configs
    assert finding.all is not None
    assert [result.config for result in finding.all] == configs
