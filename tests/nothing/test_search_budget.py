"""Rounds go to the task that promises most; limits and early stopping end a search."""

from __future__ import annotations

import math

import pytest

from sparsetvm.errors import UsageError
from sparsetvm.search.budget import EFFORTS, Deadline, TaskBudget, TuneOptions, next_task, round_size


def budget(count: int = 1, best_us: float = 100.0, rounds: int = 1, **more: object) -> TaskBudget:
    return TaskBudget(count, limit=100, patience=24, trials=rounds * 8, rounds=rounds, best_us=best_us, **more)


def test_next_task_prefers_expected_gain_times_count() -> None:
    assert next_task([budget(best_us=100.0), budget(count=4, best_us=50.0)]) == 1
    assert next_task([budget(promise=0.0), budget(best_us=90.0, promise=0.5)]) == 1
    assert next_task([budget(rounds=4), budget(best_us=60.0)]) == 1


def test_next_task_prefers_cheap_trials_when_time_is_limited() -> None:
    budgets = [budget(best_us=100.0), budget(best_us=80.0)]
    assert next_task(budgets) == 0
    assert next_task(budgets, [2.0, 0.5]) == 1


def test_rounds_are_small_at_first() -> None:
    assert [round_size(trials, 12) for trials in (0, 4, 16, 32, 100)] == [2, 2, 4, 8, 12]
    assert round_size(0, 1) == 1


def test_rounds_keep_all_builders_busy() -> None:
    assert [round_size(0, 12, jobs) for jobs in (1, 8, 64)] == [2, 8, 12]


def test_next_task_is_none_when_all_are_done() -> None:
    assert next_task([budget(exhausted=True), TaskBudget(1, limit=8, patience=9, trials=8)]) is None
    assert next_task([]) is None


def test_task_budget_stops_after_patience_trials_without_gain() -> None:
    task = TaskBudget(1, limit=100, patience=8)
    task.observe([10.0, 9.0, math.inf, 12.0], None)
    assert not task.done
    task.observe([8.99, 9.5, 9.4, 9.3], None)  # less than 1 % faster is no gain
    task.observe([9.1, 9.5, 9.4, 9.3], None)
    assert task.done
    assert task.best_us == 8.99


def test_task_budget_stops_when_the_model_sees_no_gain_for_a_while() -> None:
    task = TaskBudget(1, limit=100, patience=50)
    for promise in (0.2, 0.0, 0.1, 0.0, 0.0):
        assert not task.done
        task.observe([10.0, 11.0, 12.0, 13.0], promise)
    assert task.done


def test_max_effort_goes_on_for_smaller_gains() -> None:
    default, most = (TaskBudget(1, 100, 50, EFFORTS[effort].least_gain) for effort in ("default", "max"))
    for _ in range(5):
        default.observe([10.0, 11.0], 0.005)
        most.observe([10.0, 11.0], 0.005)
    assert default.done
    assert not most.done


def test_task_budget_gives_up_when_everything_fails() -> None:
    task = TaskBudget(1, limit=100, patience=50)
    for _ in range(3):
        assert not task.done
        task.observe([math.inf] * 4, None)
    assert task.done


def test_options_take_limits_from_the_effort_unless_told() -> None:
    assert TuneOptions(effort="quick").task_limit(dense_only=False) == EFFORTS["quick"].trials
    assert TuneOptions(effort="quick", seconds=60).task_limit(dense_only=False) > EFFORTS["quick"].trials
    assert TuneOptions().task_limit(dense_only=True) == EFFORTS["default"].dense_trials
    assert TuneOptions(early_stopping=5).patience == 5


def test_options_name_the_efforts_when_one_is_unknown() -> None:
    with pytest.raises(UsageError, match="did you mean 'quick'"):
        _ = TuneOptions(effort="quik").preset


def test_deadline_counts_down_on_its_clock() -> None:
    now = [100.0]
    deadline = Deadline(10.0, lambda: now[0])
    now[0] = 107.0
    assert deadline.left() == pytest.approx(3.0)
    assert Deadline(None).left() == math.inf
