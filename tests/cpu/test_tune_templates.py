"""The whole search on this CPU with the real templates, the real workers and a log on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sparsetvm.core.layout import PLAIN, Tiled
from sparsetvm.core.pattern import PatternSummary, pattern_digest
from sparsetvm.core.results import Event
from sparsetvm.core.target import Target, cpu_flags, device_fingerprint, host_target
from sparsetvm.core.task import Task
from sparsetvm.core.workload import ConvGeometry, Epilogue, Workload
from sparsetvm.log import journal
from sparsetvm.log.lookup import RecordIndex
from sparsetvm.measure.pool import Measurer
from sparsetvm.rewrite.plane_geometry import conv_layouts, required_pad
from sparsetvm.search.budget import TuneOptions
from sparsetvm.search.outcome import TaskOutcome
from sparsetvm.search.tuner import tune_tasks

pytestmark = pytest.mark.skipif("avx2" not in cpu_flags(), reason="needs AVX2")


def pruned(m: int, k: int, seed: int, density: float = 0.1) -> tuple[np.ndarray, np.ndarray, PatternSummary]:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((m, k)).astype(np.float32)
    weight[rng.random((m, k)) >= density] = 0
    rows = (weight != 0).sum(1)
    summary = PatternSummary(
        "unstructured", (1, 1), float((weight != 0).mean()), float(rows.max() / rows.mean()),
        int((rows == 0).sum()), pattern_digest(weight),
    )  # fmt: skip
    return weight, rng.standard_normal(m).astype(np.float32), summary


def matmul_task(name: str, target: Target, seed: int, n: int = 40) -> Task:
    weight, bias, summary = pruned(48, 64, seed)
    lin, lout = (PLAIN, PLAIN) if n == 1 else (Tiled(n, 64, target.lanes), Tiled(n, 48, target.lanes))
    epilogue = Epilogue(bias=True, activation="relu")
    workload = Workload("matmul", 48, 64, n, lin, lout, epilogue, summary, None, "float32", target.threads)
    return Task(name, workload, weight, bias, [name])


def conv_task(name: str, target: Target, seed: int) -> Task:
    conv = ConvGeometry(8, 9, 9, (3, 3), (2, 2), (1, 1, 1, 1))
    weight, bias, summary = pruned(16, 72, seed, 0.2)
    lin, lout = conv_layouts(conv, 2, 16, required_pad(conv), target.lanes)
    epilogue = Epilogue(bias=True, residual=True, activation="clip", low=0.0, high=6.0)
    n = 2 * conv.out_height * conv.out_width
    workload = Workload("conv2d", 16, 72, n, lin, lout, epilogue, summary, conv, "float32", target.threads)
    return Task(name, workload, weight, bias, [name])


def tune(tasks: list[Task], target: Target, folder: Path, **options: object) -> list[TaskOutcome]:
    path = journal.journal_path(folder, device_fingerprint(target))
    events: list[Event] = []
    with Measurer(target, repeats=3) as measurer:
        return tune_tasks(
            tasks, target, TuneOptions(effort="quick", **options), RecordIndex.open(folder, shipped=False),
            lambda records: journal.append(path, *records), measurer, events.append,
        )  # fmt: skip


def test_tune_finds_checked_kernels_and_needs_no_trial_the_second_time(tmp_path: Path) -> None:
    target = host_target(1)
    tasks = [
        matmul_task("fc", target, 0),
        matmul_task("fc_like", target, 1),
        matmul_task("gemv", target, 2, n=1),
        conv_task("conv", target, 3),
    ]
    first = tune(tasks, target, tmp_path, trials=24)
    assert all(outcome.best_us > 0 for outcome in first)
    assert first[0].trials > 0
    assert first[1].trials == 0
    assert all(set(outcome.statuses) <= {"ok"} for outcome in first), [o.statuses for o in first]
    again = tune(tasks, target, tmp_path)
    assert [outcome.source for outcome in again] == ["exact"] * 4
    assert [outcome.config for outcome in again] == [outcome.config for outcome in first]
    assert sum(outcome.trials + outcome.checks for outcome in again) == 0
    moved = tune([matmul_task("moved", target, 7)], target, tmp_path)[0]
    assert (moved.source, moved.trials, moved.checks) == ("compatible", 0, 1)


def test_tune_measures_with_two_threads(tmp_path: Path) -> None:
    target = host_target(2)
    (outcome,) = tune([matmul_task("fc", target, 0, n=70)], target, tmp_path, trials=4)
    assert outcome.statuses == {"ok": 4}


def test_tune_goes_on_after_an_interrupted_run(tmp_path: Path) -> None:
    target, task = host_target(1), matmul_task("fc", host_target(1), 0)
    tune([task], target, tmp_path, trials=3)
    path = journal.journal_path(tmp_path, device_fingerprint(target))
    searched = [record for record in journal.read_records(path).records if record.stage == "search"]
    path.unlink()
    journal.append(path, *searched)
    (outcome,) = tune([task], target, tmp_path)
    assert outcome.trials > 0
    known = {record.config for record in searched}
    after = [r for r in journal.read_records(path).records if r.stage == "search"][len(searched) :]
    assert not known & {record.config for record in after}
