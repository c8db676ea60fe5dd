"""The measurer survives whatever a candidate does, names it rightly and leaves no process behind."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import uuid
from pathlib import Path

import numpy as np
import psutil
import pytest

from sparsetvm.core.config import Config
from sparsetvm.core.layout import PLAIN
from sparsetvm.core.pattern import PatternSummary
from sparsetvm.core.results import Event
from sparsetvm.core.target import host_target
from sparsetvm.core.task import Task
from sparsetvm.core.workload import Epilogue, Workload
from sparsetvm.errors import EnvironmentProblem, UsageError
from sparsetvm.measure.pool import Measurer

RUN = uuid.uuid4().hex


def make_task(m: int, k: int, n: int) -> Task:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((m, k)).astype(np.float32)
    weight[rng.random(weight.shape) < 0.8] = 0
    pattern = PatternSummary("unstructured", (1, 1), 0.2, 1.5, 0, "d")
    return Task("layer", Workload("matmul", m, k, n, PLAIN, PLAIN, Epilogue(), pattern), weight, None, ["layer"])


@pytest.fixture(scope="module")
def task() -> Task:
    return make_task(12, 20, 5)


@pytest.fixture(scope="module", autouse=True)
def _templates_on_path() -> object:
    patch = pytest.MonkeyPatch()
    patch.setenv("MEASURE_TEST_RUN", RUN)
    patch.setenv("PYTHONPATH", str(Path(__file__).parent))  # the workers find the package without it
    yield
    patch.undo()


def make_measurer(**options: object) -> Measurer:
    defaults = {"build_timeout": 60.0, "run_timeout": 30.0, "memory_limit": 1 << 30, "repeats": 3}
    return Measurer(host_target(1), templates="fault_templates", **{**defaults, **options})


@pytest.fixture(scope="module")
def measurer(_templates_on_path: None) -> Measurer:
    with make_measurer() as shared:
        yield shared


@pytest.fixture
def impatient(_templates_on_path: None) -> Measurer:
    """For candidates that never end; a busy machine may be too slow for others in that time."""
    with make_measurer(run_timeout=1.5) as own:
        yield own


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
    "flood_forever": "run_timeout",
    "memory_hog": "out_of_memory",
    "wrong": "wrong_answer",
    "unwritten": "wrong_answer",
    "overrun": "wrong_answer",
    "underrun": "wrong_answer",
    "overrun_input": "wrong_answer",
    "underrun_input": "wrong_answer",
    "overrun_weight": "wrong_answer",
    "underrun_weight": "wrong_answer",
    "changes_input": "wrong_answer",
    "changes_weight": "wrong_answer",
    "gone": "wrong_answer",
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_measurer_names_the_fault_and_goes_on(request: pytest.FixtureRequest, task: Task, kind: str) -> None:
    measurer = request.getfixturevalue("impatient" if EXPECTED[kind] == "run_timeout" else "measurer")
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
    configs = [Config.of("test.faulty", kind="good", copy=-1), Config.of("test.nothing", a=1)]
    assert [r.status for r in measurer.measure(task, configs)] == ["invalid", "invalid"]


def test_measurer_puts_a_spare_worker_in_the_place_of_a_crashed_one(measurer: Measurer, task: Task) -> None:
    measurer.measure(task, [faulty("good")])
    before = {process.pid for process in children()}
    assert len(before) == 4  # the server, that of the task, the worker and a spare one
    measurer.measure(task, [faulty("segfault"), faulty("good")])
    # A crash costs the worker alone: no import of TVM, no reference, not even a fork before the next trial.
    assert len(before & {process.pid for process in children()}) == 3


def test_measurer_leaks_no_descriptors(task: Task) -> None:
    other = make_task(12, 20, 5)
    with make_measurer() as own:
        counts = []
        for _ in range(3):
            own.measure(task, [faulty("segfault"), faulty("good")])
            own.measure(other, [faulty("good")])
            counts.append(len(list(Path("/proc/self/fd").iterdir())))
    assert len(set(counts)) == 1


def test_measurer_does_not_believe_a_time_that_the_machine_cannot_reach() -> None:
    """Right in both checks, which poison the output first, but idle while it is timed."""
    with make_measurer() as own:
        lazy, honest = own.measure(make_task(256, 256, 128), [faulty("lazy"), faulty("good")])
    assert lazy.status == "run_error"
    assert "below the" in lazy.message
    assert honest.ok


def test_measurer_notes_the_conditions_of_each_time(measurer: Measurer, task: Task) -> None:
    good, crashed = measurer.measure(task, [faulty("good"), faulty("segfault")])
    assert good.conditions.load >= 0
    assert good.conditions.noise is None
    assert crashed.conditions is None


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
    assert good.conditions.noise == slow.conditions.noise >= 0


def test_retime_warns_when_the_same_kernel_timed_twice_differs(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsetvm.measure.pool.noise_warning", lambda noise, told: f"noise after {told > 0}")
    events: list[Event] = []
    with make_measurer(progress=events.append) as own:
        own.retime(task, [faulty("good")], rounds=3)
        own.retime(task, [faulty("slow")], rounds=3)
        own.retime(task, [faulty("wrong")], rounds=3)
    assert [event.kind for event in events] == ["warning"] * 3
    assert [event.task for event in events] == ["layer"] * 3
    assert [event.message for event in events][:2] == ["noise after False", "noise after True"]
    assert events[0].data["noise"] > 0


def children() -> list[psutil.Process]:
    return [p for p in psutil.Process().children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]


def strays() -> list[int]:
    """Processes that the measurers of this run have started, orphans included: all inherit its environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("MEASURE_TEST_RUN") == RUN and process.pid != os.getpid():
                found.append(process.pid)
    return found


@pytest.mark.parametrize("kind", ["children", "daemon"])
def test_measurer_kills_what_a_candidate_started(impatient: Measurer, task: Task, kind: str) -> None:
    impatient.measure(task, [faulty("good")])
    alive = len(strays())
    assert impatient.measure(task, [faulty(kind)])[0].status == "run_timeout"
    impatient.measure(task, [faulty("good")])
    assert len(strays()) == alive


def test_close_leaves_no_process_behind(task: Task) -> None:
    before = set(strays())
    with make_measurer() as own:
        own.measure(task, [faulty("good")])
        assert len(set(strays()) - before) == 4
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
