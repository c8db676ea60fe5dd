"""The comparison of searches: small spaces, tables, curves and their summary."""

from __future__ import annotations

import math
from pathlib import Path

import bench_search
import msgspec
import pytest
from benchlib.case import matmul_task
from benchlib.search_replay import METHODS, curve_of, of_other_layers, replay
from benchlib.search_summary import describe, mean_trials_to, summarize, task_row, trials_to, worst_ratio
from benchlib.search_table import Pass, Table, read_tables, space_of
from benchlib.search_tasks import LARGEST, TaskSet, search_cases, small_candidates, small_space, spread
from benchlib.suites import random_weight
from search_cases import TARGET, Dense, Sparse, make_task, measured, templates

from sparsetvm.core.config import Config
from sparsetvm.core.target import DeviceFingerprint, Target, device_fingerprint
from sparsetvm.core.task import Task
from sparsetvm.errors import SparseTvmError
from sparsetvm.log.journal import append
from sparsetvm.search.candidates import candidates_of
from sparsetvm.search.cost_model import CostModel, Sample
from sparsetvm.search.outcome import RecordMaker
from sparsetvm.search.trial import Measured

DEVICE = device_fingerprint(TARGET)
XEON = msgspec.structs.replace(DEVICE, vendor="GenuineIntel", model="Xeon 8581C (family 6 model 207)")


def table_of(task: Task, device: DeviceFingerprint = DEVICE) -> Table:
    candidates = small_candidates(candidates_of(task.workload, TARGET, templates))
    maker = RecordMaker(device, 0, "r")
    seen = {config: measured(task, config) for choice in candidates.choices for config in choice.space}
    records = tuple(maker.record(task, candidates, result, "search") for result in seen.values())
    again = {config: result.best_us for config, result in seen.items()}
    return Table(task, TARGET, candidates, seen, records, again, len(seen))


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


def test_one_number_thins_all_spaces():
    candidates = small_candidates(candidates_of(make_task().workload, TARGET, templates), 180)
    assert [choice.space.cardinality <= most for choice, most in zip(candidates.choices, (180, 10), strict=True)]
    assert all(choice.space.contains(choice.default) for choice in candidates.choices)


def test_held_out_tasks_share_no_layer_with_the_tuned_ones():
    """Nor with each other. Convolutions of ResNet-50 are known by their names: making them takes seconds."""
    tuned, held_out = search_cases("tuned"), search_cases("held-out")
    assert len({case.name for case in (*tuned, *held_out)}) == 28
    assert not {case.sparsity for case in tuned} & {case.sparsity for case in held_out}
    assert [(a.group, a.n) for a in tuned[:9]] == [(b.group, b.n) for b in held_out[:9]]
    products = [case.task(TARGET).workload for case in tuned[:9]]
    workloads = [case.task(TARGET).workload for case in held_out]
    shapes = {(w.m, w.k, w.n) for w in workloads}
    assert len(shapes) == 14
    assert not shapes & {(w.m, w.k, w.n) for w in products}
    assert not {(w.m, w.k) for w in workloads} & {(w.m, w.k) for w in products}
    assert len({w.pattern.digest for w in (*products, *workloads)}) == 23
    assert [w.pattern.sparsity for w in workloads] == pytest.approx([case.sparsity for case in held_out], abs=0.01)
    assert {w.pattern.kind for w in workloads} == {"unstructured", "block"}
    assert {w.conv.kernel for w in workloads if w.conv} == {(1, 1), (3, 3)}


def test_the_rule_of_the_held_out_set_is_fixed():
    names = [case.name for case in search_cases("held-out")]
    assert names[::4] == [
        "768x1536 n=1 s=0.85 unstructured", "384x768 n=128 s=0.85 unstructured", "192x768 n=784 s=0.93 unstructured",
        "conv2d 3x3 192->96 20x20 s=0.93",
    ]  # fmt: skip


def test_curve_is_the_best_so_far_over_the_optimum():
    task = make_task()
    slow, broken, fast, best = (Config.of("test.dense", mr=mr, nr=1) for mr in (2, 4, 6, 8))
    seen = {c: Measured(config=c, status="ok", times_us=(us,)) for c, us in ((slow, 20.0), (fast, 11.0), (best, 10.0))}
    seen[broken] = Measured(config=broken, status="crash")
    table = Table(task, TARGET, candidates_of(task.workload, TARGET, templates), seen, (), {}, len(seen))
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
        runs = [replay(table, method, 3, 24, [other]) for _ in range(2)]
        assert runs[0].order == runs[1].order
        assert len(set(runs[0].order)) == 24
        assert runs[0].curve == sorted(runs[0].curve, reverse=True)


def test_guided_search_needs_fewer_trials_than_random_and_fewest_when_warm():
    tables = [table_of(make_task()), table_of(make_task(k=256, digest="o"))]
    pairs = (tables, tables[::-1])
    runs = [{m: [replay(t, m, seed, 64, [o]) for seed in range(3)] for m in METHODS} for t, o in pairs]
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


def fc(n: int = 1, k: int = 64) -> Task:
    return matmul_task(f"fc{k}", n, lambda: random_weight((64, k), 0.9, 0), TARGET)


def write_table(
    path: Path, *, task: Task | None = None, tasks: TaskSet = "tuned", left_out: int = 0, finals: int = 4,
    target: Target = TARGET, device: DeviceFingerprint = DEVICE, configs: int = LARGEST, asked: int = LARGEST,
    run: str = "",
) -> None:  # fmt: skip
    """A table of a layer, of one token by default, with the real templates. run: of the records, instead of a Pass."""
    task = fc() if task is None else task
    candidates = small_candidates(candidates_of(task.workload, target), configs)
    maker = RecordMaker(device, 0, run or Pass(tasks, target, configs, asked).run())
    found = [config for choice in candidates.choices for config in choice.space]
    results = [Measured(config=c, status="ok", times_us=(10.0 + at,)) for at, c in enumerate(found)]
    append(path, *(maker.record(task, candidates, r, "search") for r in results[left_out:]))
    slower = [Measured(config=r.config, status="ok", times_us=(2 * r.best_us + 3,)) for r in results[left_out:finals]]
    append(path, *(maker.record(task, candidates, r, "final") for r in slower))


def only_table(path: Path, tasks: TaskSet = "tuned") -> Table:
    (table,) = read_tables(path, tasks, TARGET).tables
    return table


def test_tables_tell_how_the_best_did_when_built_again(tmp_path):
    write_table(tmp_path / "t.jsonl")
    table = only_table(tmp_path / "t.jsonl")
    assert table.optimum_us == 10.0
    assert len(table.seen) == len(table.records) == table.asked == 24
    assert sorted(table.again_us.values()) == [23.0, 25.0, 27.0, 29.0]


@pytest.mark.parametrize("missing", [{"left_out": 1}, {"finals": 0}])
def test_a_table_that_is_not_whole_is_refused(tmp_path, missing):
    write_table(tmp_path / "t.jsonl", **missing)
    with pytest.raises(SparseTvmError, match="measured whole"):
        read_tables(tmp_path / "t.jsonl", "tuned", TARGET)


def test_unfinished_tasks_are_named(tmp_path):
    write_table(tmp_path / "t.jsonl")
    write_table(tmp_path / "t.jsonl", task=fc(k=128), finals=0)
    found = read_tables(tmp_path / "t.jsonl", "tuned", TARGET)
    assert [table.task.workload.k for table in found.tables] == [64]
    assert found.unfinished == ["matmul 64x128 n=1"]


def test_a_table_of_other_spaces_than_the_local_ones_is_refused(tmp_path):
    # What this pass says it measured is not what it measured.
    run = Pass("tuned", TARGET, 40, 40).run()
    write_table(tmp_path / "t.jsonl", task=fc(n=64), configs=80, run=run)
    with pytest.raises(SparseTvmError, match="not that of the local templates"):
        read_tables(tmp_path / "t.jsonl", "tuned", TARGET)


def test_the_largest_space_that_was_finished_counts(tmp_path):
    task, path = fc(n=64), tmp_path / "t.jsonl"
    write_table(path, task=task, configs=40, asked=160)
    coarse = only_table(path)
    assert len(coarse.seen) < coarse.asked
    assert coarse.candidates.cardinality == len(coarse.seen)
    write_table(path, task=task, configs=80, asked=160)
    assert len(coarse.seen) < len(only_table(path).seen) < coarse.asked
    write_table(path, task=task, configs=160, asked=160, finals=0)
    assert len(only_table(path).seen) < coarse.asked


def test_sets_of_tasks_in_one_file_are_told_apart(tmp_path):
    write_table(tmp_path / "t.jsonl")
    write_table(tmp_path / "t.jsonl", task=fc(k=128), tasks="held-out")
    assert only_table(tmp_path / "t.jsonl").task.workload.k == 64
    assert only_table(tmp_path / "t.jsonl", "held-out").task.workload.k == 128


def test_a_table_of_two_machines_is_refused(tmp_path):
    write_table(tmp_path / "t.jsonl")
    write_table(tmp_path / "t.jsonl", task=fc(k=128), device=XEON)
    with pytest.raises(SparseTvmError, match="2 machines"):
        read_tables(tmp_path / "t.jsonl", "tuned", TARGET)


def test_a_table_is_replayed_as_on_the_machine_that_was_measured(tmp_path):
    """Spaces, defaults, features and what the log offers depend on the table alone."""
    path, measured_for = tmp_path / "t.jsonl", msgspec.structs.replace(TARGET, mcpu="sapphirerapids", l2=1 << 14)
    for task in (fc(n=64, k=512), fc(n=64, k=384)):
        write_table(path, task=task, target=measured_for, device=XEON, configs=60, asked=60)
    here, there = (read_tables(path, "tuned", local).tables for local in (TARGET, measured_for))
    assert here[0].target == there[0].target == measured_for
    declared = [
        [(choice.name, choice.space, choice.default) for choice in candidates.choices]
        for candidates in (here[0].candidates, there[0].candidates, space_of(here[0].task, TARGET, 60))
    ]
    assert declared[0] == declared[1] != declared[2]
    assert here[0].device == XEON
    results = [bench_search.replay_all(path, "tuned", "", 1, 12, local) for local in (TARGET, measured_for)]
    assert results[0]["tasks"] == results[1]["tasks"]
    assert results[0]["machine"]["measured_on"] == XEON.model
    assert results[0]["machine"]["target"] == "cpu,sapphirerapids"


def test_records_of_the_measured_machine_are_no_strangers_to_the_search(monkeypatch):
    """The cost model trusts records of another device less. Which one is that, the table says, not this machine."""
    tables = [table_of(make_task(digest=digest, k=k), XEON) for digest, k in (("a", 512), ("b", 256))]
    seen: list[Sample] = []
    monkeypatch.setattr(CostModel, "transfer", lambda _, samples: seen.extend(samples))
    replay(tables[0], "warm", 0, 4, tables)
    assert seen
    assert {sample.device for sample in seen} == {""}


def test_only_records_of_other_layers_are_offered():
    table = table_of(make_task(digest="a", density=0.10))
    same_weights = table_of(make_task(digest="a", density=0.10, n=128))
    alike = table_of(make_task(digest="b", density=0.105))
    sparser = table_of(make_task(digest="c", density=0.05))
    wider = table_of(make_task(digest="d", density=0.10, k=256))
    assert of_other_layers(table, [table, same_weights, alike, sparser, wider]) == [sparser, wider]


def test_a_table_that_does_not_say_its_target_is_of_this_machine_only(tmp_path):
    write_table(tmp_path / "t.jsonl", run="bench_search")
    assert only_table(tmp_path / "t.jsonl").target == TARGET
    write_table(tmp_path / "x.jsonl", run="bench_search", device=XEON)
    with pytest.raises(SparseTvmError, match="does not say its target"):
        read_tables(tmp_path / "x.jsonl", "tuned", TARGET)
    write_table(tmp_path / "y.jsonl", run="b7e1")
    with pytest.raises(SparseTvmError, match="none of bench_search"):
        read_tables(tmp_path / "y.jsonl", "tuned", TARGET)


def test_bench_search_writes_the_documented_keys(tmp_path):
    write_table(tmp_path / "t.jsonl", tasks="held-out")
    result = bench_search.replay_all(tmp_path / "t.jsonl", "held-out", "", 2, 24, TARGET)
    assert result["schema"] == 1
    assert (result["task_set"], result["tasks_of_set"], result["unfinished"]) == ("held-out", 14, [])
    wanted = {"gap_at_64", "trials_to_5pct_vs_random", "gap_at_16_warm", "rank_correlation"}
    assert wanted <= result["summary"].keys()
    row = result["tasks"][0]
    assert set(row["curves"]) == set(METHODS)
    assert row["configs"] == row["configs_asked"] == 24
    documented = (Path(__file__).parents[2] / "docs" / "json.md").read_text()
    assert [key for key in (*result, *row, *result["summary"]) if f"`{key}`" not in documented] == []
    with pytest.raises(SparseTvmError, match="no task"):
        bench_search.replay_all(tmp_path / "t.jsonl", "held-out", "conv", 1, 4, TARGET)
