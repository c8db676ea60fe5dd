"""The measurer survives whatever a candidate does, names it rightly and leaves no process behind."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from sparsetvm.core.config import Config
from sparsetvm.core.layout import PLAIN
from sparsetvm.core.pattern import PatternSummary
from sparsetvm.core.target import host_target
from sparsetvm.core.task import Task
from sparsetvm.core.workload import Epilogue, Workload
from sparsetvm.errors import EnvironmentProblem, UsageError
from sparsetvm.measure.pool import Measurer


@pytest.fixture(scope="module")
def task() -> Task:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((12, 20)).astype(np.float32)
    weight[rng.random(weight.shape) < 0.8] = 0
    pattern = PatternSummary("unstructured", (1, 1), 0.2, 1.5, 0, "d")
    workload = Workload("matmul", 12, 20, 5, PLAIN, PLAIN, Epilogue(), pattern)
    return Task("layer", workload, weight, None, ["layer"])


@pytest.fixture(scope="module", autouse=True)
def _templates_on_path() -> object:
    patch = pytest.MonkeyPatch()
    patch.setenv("PYTHONPATH", str(Path(__file__).parent))
    yield
    patch.undo()


def make_measurer(**options: object) -> Measurer:
    defaults = {"build_timeout": 20.0, "run_timeout": 1.5, "memory_limit": 1 << 30, "repeats": 3}
    return Measurer(host_target(1), templates="fault_templates", **{**defaults, **options})


@pytest.fixture(scope="module")
def measurer(_templates_on_path: None) -> Measurer:
    with make_measurer() as shared:
        yield shared


def faulty(kind: str, copy: int = 0) -> Config:
    return Config.of("test.faulty", kind=kind, copy=copy)


EXPECTED = {
    "good": "ok",
    "slow": "ok",
    "flood": "ok",
    "build_invalid": "invalid",
    "build_error": "compile_error",
    "build_crash": "crash",
    "run_error": "run_error",
    "segfault": "crash",
    "abort": "crash",
    "hang": "run_timeout",
    "memory_hog": "out_of_memory",
    "wrong": "wrong_answer",
    "unwritten": "wrong_answer",
    "overrun": "wrong_answer",
    "underrun": "wrong_answer",
    "changes_input": "wrong_answer",
    "gone": "wrong_answer",
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_measurer_names_the_fault_and_goes_on(measurer: Measurer, task: Task, kind: str) -> None:
    result, after = measurer.measure(task, [faulty(kind), faulty("good", 1)])
    assert result.status == EXPECTED[kind], result
    assert bool(result.times_us) == (result.status == "ok")
    assert (result.message == "") == (result.status == "ok")
    assert after.status == "ok"
    assert after.error < 1e-6
    assert after.best_us > 0


def test_measurer_says_which_limit_a_hanging_build_broke(task: Task) -> None:
    with make_measurer(build_timeout=4.0) as own:
        result = own.measure(task, [faulty("build_hang")])[0]
    assert result.status == "compile_timeout"
    assert "4 s" in result.message


def test_measurer_reports_signal_and_last_words_of_a_crash(measurer: Measurer, task: Task) -> None:
    result = measurer.measure(task, [faulty("abort")])[0]
    assert "SIGABRT" in result.message
    assert "LLVM ERROR: test abort" in result.message


def test_measurer_rejects_configs_outside_the_space_and_unknown_templates(measurer: Measurer, task: Task) -> None:
    configs = [Config.of("test.faulty", kind="good", copy=9), Config.of("test.nothing", a=1)]
    assert [r.status for r in measurer.measure(task, configs)] == ["invalid", "invalid"]


def test_measurer_replaces_a_crashed_worker_quickly(measurer: Measurer, task: Task) -> None:
    measurer.measure(task, [faulty("good")])
    pids = {process.pid for process in children()}
    measurer.measure(task, [faulty("segfault"), faulty("good")])
    # The fork server stays: a crash costs a fork and not an import of TVM.
    assert len(pids & {process.pid for process in children()}) == 1


def test_measurer_hands_over_each_result_at_once(measurer: Measurer, task: Task) -> None:
    seen: list[str] = []
    measurer.measure(task, [faulty("good"), faulty("abort"), faulty("good", 1)], lambda m: seen.append(m.status))
    assert seen == ["ok", "crash", "ok"]


def test_measurer_builds_in_parallel_when_it_may(task: Task) -> None:
    kinds = ["good", "build_crash", "build_error", "segfault", "wrong", "build_hang"]
    with make_measurer(jobs=2, build_timeout=3.0) as own:
        results = own.measure(task, [faulty(kind) for kind in kinds])
        # A second batch must not run the libraries of the first.
        second = own.measure(task, [faulty(kind, 1) for kind in ("wrong", "good", "good")])
        home = Path(own._home.name)
    expected = ["ok", "crash", "compile_error", "crash", "wrong_answer", "compile_timeout"]
    assert [r.status for r in results] == expected
    assert [r.status for r in second] == ["wrong_answer", "ok", "ok"]
    assert results[0].build_seconds > 0
    assert not home.exists()


def test_retime_gives_one_time_per_round_and_survives_a_crash(measurer: Measurer, task: Task) -> None:
    configs = [faulty("good"), faulty("segfault"), faulty("slow"), faulty("wrong")]
    good, crashed, slow, wrong = measurer.retime(task, configs, rounds=4)
    assert (good.status, crashed.status, slow.status, wrong.status) == ("ok", "crash", "ok", "wrong_answer")
    assert len(good.times_us) == len(slow.times_us) == 4
    assert slow.best_us > good.best_us


def children() -> list[psutil.Process]:
    return [p for p in psutil.Process().children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]


def strays() -> list[int]:
    """Processes of workers, orphans included."""
    found = []
    for process in psutil.process_iter():
        try:
            line = process.cmdline()
            if "sparsetvm.measure.worker" in line and "fault_templates" in line:
                found.append(process.pid)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def test_close_leaves_no_process_behind_even_grandchildren(task: Task) -> None:
    before = set(strays())
    with make_measurer(run_timeout=0.5) as own:
        assert own.measure(task, [faulty("children")])[0].status == "run_timeout"
        own.measure(task, [faulty("good")])
        assert set(strays()) - before
    deadline = time.monotonic() + 5
    while set(strays()) - before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not set(strays()) - before


def test_measurer_stops_everything_on_keyboard_interrupt(task: Task) -> None:
    before = set(strays())
    own = make_measurer(run_timeout=60.0)
    own.measure(task, [faulty("good")])
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        own.measure(task, [faulty("good"), faulty("hang")])
    timer.join()
    assert not set(strays()) - before
    assert own.measure(task, [faulty("good")])[0].status == "ok"  # it starts again when used again
    own.close()


def test_measurer_says_what_is_missing_when_workers_cannot_start(task: Task) -> None:
    with (
        Measurer(host_target(1), templates="no_such_module_of_templates") as own,
        pytest.raises(EnvironmentProblem, match="no_such_module_of_templates"),
    ):
        own.measure(task, [faulty("good")])


def test_measurer_refuses_targets_of_other_machines() -> None:
    from sparsetvm.core.target import Target

    with pytest.raises(UsageError, match="cannot be measured"):
        Measurer(Target("cpu", "znver4", "avx512", host=False))
