"""Measuring spaces: what is measured in which time, on which core, and what is kept."""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec
import pytest
from benchlib import machine, search_measure
from benchlib.case import matmul_task
from benchlib.search_measure import Plan, fitting_configs, measure_all, measure_task, run_on_cores, share_of_time
from benchlib.search_table import Spent, read_passes, read_tables
from benchlib.suites import random_weight
from search_cases import TARGET

from sparsetvm.core.config import Config
from sparsetvm.core.task import Task
from sparsetvm.errors import UsageError
from sparsetvm.search.replay import ReplayMeasurer
from sparsetvm.search.trial import Measured


class FakeProcess:
    """A process that has ended with an exit code, or hangs (None) until it is killed."""

    def __init__(self, exitcode: int | None) -> None:
        self.exitcode = exitcode
        self.sentinel, self._alive = os.pipe()
        if exitcode is not None:
            os.close(self._alive)

    def is_alive(self) -> bool:
        return self.exitcode is None

    def terminate(self) -> None:
        os.close(self._alive)
        self.exitcode = 0

    def join(self) -> None:
        os.close(self.sentinel)


def fc() -> Task:
    return matmul_task("fc", 64, lambda: random_weight((64, 256), 0.9, 0), TARGET)


def fake_measurer() -> ReplayMeasurer:
    def cost(_: Task, config: Config) -> Measured:
        return Measured(config=config, status="ok", times_us=(10.0 + len(str(config)),))

    return ReplayMeasurer(cost)


def plan_for(path: Path, configs: int = 160) -> Plan:
    return Plan(path, "held-out", TARGET, configs)


def test_each_process_has_a_core_of_its_own_and_a_free_one_is_used_again():
    started = []

    def start(name: str, core: int, deadline: float | None) -> FakeProcess:
        started.append((name, core, deadline))
        return FakeProcess(1 if name == "b" else 0)

    assert run_on_cores(["a", "b", "c"], [3, 2], None, start) == ([], ["b"])
    assert [name for name, *_ in started] == ["a", "b", "c"]
    assert [core for _, core, _ in started[:2]] == [3, 2]
    assert started[2][1] in (2, 3)
    assert {deadline for *_, deadline in started} == {None}


def test_a_process_whose_time_is_up_is_ended():
    processes = {"slow": FakeProcess(None), "ends": FakeProcess(0)}
    ended = run_on_cores(list(processes), [0, 1], 0.01, lambda name, core, deadline: processes[name])
    assert ended == (["slow"], [])


def test_a_process_that_does_not_end_is_killed(monkeypatch):
    monkeypatch.setattr(search_measure, "_GRACE", 0.01)

    class Deaf(FakeProcess):
        def terminate(self) -> None:
            pass

        kill = FakeProcess.terminate

    assert run_on_cores(["deaf"], [0], 0.01, lambda *_: Deaf(None)) == (["deaf"], [])


def test_tasks_share_the_time_when_there_are_more_than_cores():
    assert share_of_time(300.0, 14, 16) == 300.0
    assert share_of_time(300.0, 14, 8) == 150.0
    assert share_of_time(300.0, 3, 1) == 100.0


def test_only_as_much_is_measured_as_fits_into_the_time():
    spent = Spent(search=40.0, final=20.0)  # 1 s and 0.5 s for each of 40

    def fitting(seconds: float) -> int:
        return fitting_configs(spent, lambda configs: configs, 40, 200, seconds)

    assert fitting(1e6) == 200
    assert fitting(132.0) == 100
    assert fitting(45.0) == 40


def test_a_limited_measurement_keeps_the_coarse_space_when_there_is_no_time_for_more(tmp_path):
    measure_task(fc(), plan_for(tmp_path / "t.jsonl"), fake_measurer(), time.monotonic() - 1.0)
    (table,) = read_tables(tmp_path / "t.jsonl", "held-out", TARGET).tables
    assert 1 < len(table.seen) < table.asked
    assert table.again_us


def test_a_limited_measurement_goes_on_to_what_was_asked_for(tmp_path):
    path, far = tmp_path / "t.jsonl", time.monotonic() + 1e6
    measure_task(fc(), plan_for(path), fake_measurer(), far)
    assert sorted((done.configs, done.asked) for done in read_passes(path, TARGET)) == [(40, 160), (160, 160)]
    (table,) = read_tables(path, "held-out", TARGET).tables
    assert len(table.seen) == table.asked


@pytest.mark.parametrize("limit", [None, 1e6])
def test_what_a_table_holds_is_not_measured_again(tmp_path, limit):
    path, deadline = tmp_path / "t.jsonl", None if limit is None else time.monotonic() + limit
    measure_task(fc(), plan_for(path), fake_measurer(), deadline)
    again = fake_measurer()
    measure_task(fc(), plan_for(path), again, deadline)
    assert again.retimed == []
    measure_task(fc(), plan_for(path, 320), again, deadline)
    assert again.retimed


def test_a_table_of_another_machine_is_not_continued(tmp_path, monkeypatch):
    path = tmp_path / "t.jsonl"
    measure_task(fc(), plan_for(path), fake_measurer(), None)
    monkeypatch.setattr("benchlib.search_measure.run_on_cores", lambda *_: ([], []))
    assert measure_all(plan_for(path), "") == []
    other = Plan(path, "held-out", msgspec.structs.replace(TARGET, l2=1 << 24), 160)
    with pytest.raises(UsageError, match="2 machines"):
        measure_all(other, "")
    with pytest.raises(UsageError, match="no task"):
        measure_all(plan_for(path), "conv3d")


def test_cores_are_physical_ones_first(monkeypatch, capsys):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 4, 5, 6})
    monkeypatch.setattr(machine, "_siblings", lambda core: f"{core % 4},{core % 4 + 4}")
    assert machine.cores_to_measure_on(1) == [6]
    assert machine.cores_to_measure_on(3) == [6, 5, 4]
    assert capsys.readouterr().err == ""
    assert machine.cores_to_measure_on(5) == [6, 5, 4, 2, 1]
    assert "3 physical cores" in capsys.readouterr().err
    with pytest.raises(UsageError, match="7 processes"):
        machine.cores_to_measure_on(7)
