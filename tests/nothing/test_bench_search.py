"""The comparison of searches: small spaces, tables, curves and their summary."""

from __future__ import annotations

import math
from pathlib import Path

import bench_search
import pytest
from benchlib.search_replay import METHODS, curve_of, replay
from benchlib.search_summary import describe, mean_trials_to, summarize, task_row, trials_to, worst_ratio
from benchlib.search_table import Table, read_tables
from benchlib.search_tasks import small_candidates, small_space, spread
from search_cases import TARGET, Dense, Sparse, make_task, measured, templates

from sparsetvm.core.config import Config
from sparsetvm.core.target import device_fingerprint
from sparsetvm.core.task import Task
from sparsetvm.errors import SparseTvmError
from sparsetvm.log.journal import append
from sparsetvm.search.candidates import candidates_of
from sparsetvm.search.outcome import RecordMaker
from sparsetvm.search.trial import Measured


def table_of(task: Task) -> Table:
    candidates = small_candidates(candidates_of(task.workload, TARGET, templates))
    maker = RecordMaker(device_fingerprint(TARGET), 0, "r")
    seen = {config: measured(task, config) for choice in candidates.choices for config in choice.space}
    records = tuple(maker.record(task, candidates, result, "search") for result in seen.values())
    return Table(task, candidates, seen, records, {config: result.best_us for config, result in seen.items()})


def test_small_space_keeps_the_default_and_all_choices():
    task = make_task()
    space, default = Sparse().space(task.workload, TARGET), Sparse().default(task.workload, TARGET)
    small = small_space(space, default, 100)
    assert small.cardinality <= 100
    assert small.contains(default)
    assert {config["order"] for config in small} == {"k", "rows", "tiles"}
    assert small_space(space, default, 10**6) == space


def test_spread_values_keep_their_order_and_the_default():
    assert spread((1, 2, 4, 8, 16), 3, 4) == (1, 4, 16)
    assert spread((1, 2, 4, 8, 16), 3, 2) == (2, 4, 16)
    assert spread((1, 2, 4), 1, 4) == (4,)


def test_small_candidates_thin_each_template():
    candidates = small_candidates(candidates_of(make_task().workload, TARGET, templates))
    assert [choice.space.cardinality <= most for choice, most in zip(candidates.choices, (432, 24), strict=True)]
    assert candidates.choice(Dense.name).space.cardinality == 16


def test_curve_is_the_best_so_far_over_the_optimum():
    task = make_task()
    slow, broken, fast, best = (Config.of("test.dense", mr=mr, nr=1) for mr in (2, 4, 6, 8))
    seen = {c: Measured(config=c, status="ok", times_us=(us,)) for c, us in ((slow, 20.0), (fast, 11.0), (best, 10.0))}
    seen[broken] = Measured(config=broken, status="crash")
    table = Table(task, candidates_of(task.workload, TARGET, templates), seen, (), {})
    assert curve_of(table, [broken, slow, fast, slow], 6) == [math.inf, 2.0, 1.1, 1.1, 1.1, 1.1]


def test_trials_to_counts_until_the_curve_is_close():
    assert trials_to([1.2, 1.06, 1.04, 1.0]) == 3
    assert trials_to([1.0]) == 1
    assert trials_to([1.2, 1.1]) is None
    assert mean_trials_to([[1.2, 1.0], [1.2, 1.1]]) == 2.5
    assert worst_ratio([1.2, 1.0], [1.0, 1.1]) == pytest.approx(1.2)


def test_replays_repeat_no_trial_and_are_the_same_for_a_seed():
    table, other = table_of(make_task()), table_of(make_task(k=256, digest="o"))
    for method in METHODS:
        runs = [replay(table, method, 3, 24, TARGET, [other]) for _ in range(2)]
        assert runs[0].order == runs[1].order
        assert len(set(runs[0].order)) == 24
        assert runs[0].curve == sorted(runs[0].curve, reverse=True)


def test_guided_search_needs_fewer_trials_than_random_and_fewest_when_warm():
    tables = [table_of(make_task()), table_of(make_task(k=256, digest="o"))]
    pairs = (tables, tables[::-1])
    runs = [{m: [replay(t, m, seed, 64, TARGET, [o]) for seed in range(3)] for m in METHODS} for t, o in pairs]
    rows = [task_row(table, 1808, of_task) for table, of_task in zip(tables, runs, strict=True)]
    summary = summarize(rows, runs)
    assert summary["gap_at_64"] < summary["gap_at_64_random"]
    curves = summary["curves"]
    assert curves["warm"][7] < curves["guided"][7]
    assert summary["rank_correlation"] is not None
    assert summary["gap_of_best_built_again"] == pytest.approx(0.0)
    text = describe(rows, summary)
    assert "gap_at_64" in text
    assert max(map(len, text.splitlines())) <= 120


def write_table(path: Path, left_out: int = 0) -> None:
    """A table of a layer of one token, with the real templates."""
    from benchlib.case import matmul_task
    from benchlib.suites import random_weight

    task = matmul_task("fc", 1, lambda: random_weight((64, 64), 0.9, 0), TARGET)
    candidates = small_candidates(candidates_of(task.workload, TARGET))
    maker = RecordMaker(device_fingerprint(TARGET), 0, "r")
    configs = [config for choice in candidates.choices for config in choice.space]
    results = [Measured(config=c, status="ok", times_us=(10.0 + at,)) for at, c in enumerate(configs)]
    append(path, *(maker.record(task, candidates, r, "search") for r in results[left_out:]))
    slower = [Measured(config=r.config, status="ok", times_us=(2 * r.best_us + 3,)) for r in results[left_out:4]]
    append(path, *(maker.record(task, candidates, r, "final") for r in slower))


def test_tables_tell_how_the_best_did_when_built_again(tmp_path):
    write_table(tmp_path / "t.jsonl")
    (table,) = read_tables(tmp_path / "t.jsonl", TARGET)
    assert table.optimum_us == 10.0
    assert len(table.seen) == len(table.records) == 24
    assert sorted(table.again_us.values()) == [23.0, 25.0, 27.0, 29.0]


def test_a_table_that_is_not_whole_is_refused(tmp_path):
    write_table(tmp_path / "t.jsonl", left_out=1)
    with pytest.raises(SparseTvmError, match="not whole"):
        read_tables(tmp_path / "t.jsonl", TARGET)


def test_bench_search_writes_the_documented_keys(tmp_path):
    write_table(tmp_path / "t.jsonl")
    result = bench_search.replay_all(tmp_path / "t.jsonl", "", 2, 24, TARGET)
    assert result["schema"] == 1
    wanted = {"gap_at_64", "trials_to_5pct_vs_random", "gap_at_16_warm", "rank_correlation"}
    assert wanted <= result["summary"].keys()
    assert set(result["tasks"][0]["curves"]) == set(METHODS)
    with pytest.raises(SparseTvmError, match="no task"):
        bench_search.replay_all(tmp_path / "t.jsonl", "conv", 1, 4, TARGET)
