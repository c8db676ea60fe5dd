"""Turns of competitors: how often each runs, several instances at the same time, and what is reported."""

import threading
import time

import pytest

from sparsetvm.runtime.compare import BenchPlan, interleave, latency_of


class Counting:
    runs = 0

    def __call__(self):
        self.runs += 1


@pytest.mark.parametrize("iterations", [1, 7, 10, 23])
def test_iterations_are_timed_as_often_as_asked(iterations):
    runs = {"ours": [Counting()], "ort": [Counting()]}
    timed = interleave(runs, BenchPlan(iterations=iterations))
    assert [len(found.times) for found in timed.values()] == [iterations, iterations]
    assert all(run.runs > iterations for (run,) in runs.values())  # warm-up and the first of each turn are not timed


def test_seconds_give_every_round_a_few_runs_however_slow_they_are():
    timed = interleave({"ours": [Counting()]}, BenchPlan(seconds=1e-9))
    assert len(timed["ours"].times) == 20


def test_turns_end_when_runs_take_much_longer_than_the_first_ones():
    run = Counting()

    def slower():
        run()
        if run.runs > 6:
            time.sleep(0.005)

    timed = interleave({"ours": [slower]}, BenchPlan(seconds=0.05))
    assert 20 <= len(timed["ours"].times) <= 60  # 10 ms in each of ten turns, not the thousands that were planned


def test_warm_up_lasts_as_long_as_asked():
    run = Counting()
    begun = time.monotonic()
    interleave({"ours": [run]}, BenchPlan(iterations=1, warm_up=0.02))
    assert time.monotonic() - begun >= 0.02
    assert run.runs > 6


def test_instances_of_one_competitor_run_at_the_same_time():
    """Each waits for the other: one after the other they would never end."""
    meet = threading.Barrier(2, timeout=20)
    seen = set()

    def run():
        if threading.current_thread() is not threading.main_thread():  # warm-up is alone
            meet.wait()
            seen.add(threading.get_ident())

    timed = interleave({"ours": [run, run]}, BenchPlan(iterations=12))
    assert len(timed["ours"].times) == 24
    assert len(seen) == 2  # a thread each, in all rounds: libraries keep pools for calling threads


def test_instances_are_one_after_the_other_for_different_competitors():
    running, together = [], []

    def of(name):
        def run():
            running.append(name)
            together.append(len(set(running)) > 1)
            running.remove(name)

        return [run, run]

    interleave({"ours": of("ours"), "ort": of("ort")}, BenchPlan(iterations=20))
    assert not any(together)


def test_error_of_one_instance_ends_the_others_too():
    calls = Counting()

    def fails():
        calls()
        if calls.runs > 4:
            raise ValueError("broken")

    with pytest.raises((ValueError, threading.BrokenBarrierError)):
        interleave({"ours": [fails, lambda: None]}, BenchPlan(iterations=1000))


def test_rounds_are_told():
    events = []
    interleave({"ours": [Counting()]}, BenchPlan(iterations=2), events.append)
    assert [event.message for event in events] == ["timing ours: round 1 of 2", "timing ours: round 2 of 2"]


def test_latency_has_the_percentiles_that_were_asked_for():
    found = latency_of([float(ms) for ms in range(1, 102)], (75, 99.9))
    assert (found.median, found.p90, found.p99, found.min, found.max) == (51.0, 91.0, 100.0, 1.0, 101.0)
    assert found.percentiles == {"p75": 76.0, "p99.9": pytest.approx(100.9)}
    assert (found.mean, found.repeats) == (51.0, 101)
    assert found.per_second == pytest.approx(1000 / 51)


def test_rate_of_instances_is_that_of_all_of_them():
    assert latency_of([10.0] * 40, wall=0.2).per_second == pytest.approx(200.0)
