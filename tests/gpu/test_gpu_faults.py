"""Candidates that break the GPU's context or never end: recorded, survived and not tried again."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from gpu_faults import Faulty, Honest, Quick
from gpu_tools import needs_gpu

from sparsetvm.core.config import Config
from sparsetvm.core.layout import PLAIN
from sparsetvm.core.pattern import PatternSummary
from sparsetvm.core.target import device_fingerprint, parse_target
from sparsetvm.core.task import Task
from sparsetvm.core.workload import Epilogue, Workload
from sparsetvm.log import journal
from sparsetvm.log.lookup import RecordIndex
from sparsetvm.measure.pool import Measurer
from sparsetvm.search.budget import TuneOptions
from sparsetvm.search.tuner import tune_tasks

pytestmark = needs_gpu
_RUN_SECONDS = 6.0  # time enough to make a context


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> Task:
    folders = [Path(__file__).parent, Path(__file__).parents[1], os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, folders)))  # where workers find templates
    weight = np.random.default_rng(0).standard_normal((96, 64)).astype(np.float32)
    pattern = PatternSummary("unstructured", (1, 1), 1.0, 1.0, 0, "d")
    workload = Workload("matmul", 96, 64, 40, PLAIN, PLAIN, Epilogue(), pattern)
    return Task("layer", workload, weight, None, ["layer"])


def config(kind: str, copy: int = 0) -> Config:
    return Config.of(Faulty.name, kind=kind, copy=copy)


def test_candidate_after_one_that_broke_the_context_or_never_ended_is_measured_right(task: Task) -> None:
    configs = [config("good"), config("outside"), config("good", 1), config("endless"), config("good", 2)]
    options = {"jobs": 2, "repeats": 2, "run_timeout": _RUN_SECONDS}
    with Measurer(parse_target("cuda"), templates="gpu_faults", **options) as measurer:
        results = measurer.measure(task, configs)
        finals = measurer.retime(task, [config("good"), config("outside"), config("good", 1)], 2)
    assert [result.status for result in results] == ["ok", "crash", "ok", "run_timeout", "ok"], results
    assert [result.status for result in finals] == ["ok", "crash", "ok"], finals
    for broken in (results[1], finals[1]):
        assert "CUDA_ERROR_ILLEGAL_ADDRESS" in broken.message
    assert all(result.error < 1e-5 and result.best_us < 1000 for result in results if result.ok)


class Watched(Measurer):
    asked: list[Config]

    def measure(self, task, configs, on_result=None):
        self.asked = [*getattr(self, "asked", []), *configs]
        return super().measure(task, configs, on_result)


def test_search_records_what_broke_the_context_and_does_not_try_it_again(task: Task, tmp_path: Path) -> None:
    target = parse_target("cuda")
    path = journal.journal_path(tmp_path, device_fingerprint(target))
    asked = []
    for trials in (5, 20):
        with Watched(target, jobs=2, templates="gpu_faults", repeats=1, run_timeout=_RUN_SECONDS) as measurer:
            (outcome,) = tune_tasks(
                [task], target, TuneOptions(effort="quick", trials=trials, early_stopping=99),
                RecordIndex.open(tmp_path, shipped=False),
                # Without the final rounds the second run has to search on, as after an interruption.
                lambda records: journal.append(path, *[r for r in records if r.stage == "search"]),
                measurer, lambda event: None, templates=lambda workload, target: [Quick(), Honest()],
            )  # fmt: skip
        assert outcome.config not in [config("outside", copy) for copy in range(3)]
        asked.append(measurer.asked)
    records = journal.read_records(path).records
    assert {r.status for r in records if r.config in [config("outside", copy) for copy in range(3)]} == {"crash"}
    assert {r.status for r in records if r.config.template == Honest.name or r.config["kind"] == "good"} == {"ok"}
    assert sorted(map(str, asked[0] + asked[1])) == sorted({str(r.config) for r in records})  # each of them once
    assert len(records) == 7
