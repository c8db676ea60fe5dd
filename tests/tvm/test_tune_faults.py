"""A search among candidates that crash: it finds the others, and never tries again what crashed."""

from __future__ import annotations

from pathlib import Path

import pytest
from fault_templates import Faulty, Honest
from test_measure_pool import make_task

from sparsetvm.core.config import Config
from sparsetvm.core.target import device_fingerprint, host_target
from sparsetvm.core.workload import Workload
from sparsetvm.log import journal
from sparsetvm.log.lookup import RecordIndex
from sparsetvm.measure.pool import Measurer
from sparsetvm.search.budget import TuneOptions
from sparsetvm.search.tuner import tune_tasks
from sparsetvm.space.knobs import Choice
from sparsetvm.space.space import Space

KINDS = ("good", "segfault", "abort", "wrong", "build_crash")


class MostlyFaulty(Faulty):
    """The space that is searched; the workers' one holds it."""

    def space(self, workload: Workload, target: object) -> Space:
        return Space(self.name, (Choice("kind", KINDS), Choice("copy", (0, 1, 2))))


class Watched(Measurer):
    asked: list[Config]

    def measure(self, task, configs, on_result=None):
        self.asked = [*getattr(self, "asked", []), *configs]
        return super().measure(task, configs, on_result)


def test_what_crashed_is_recorded_and_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    target, task = host_target(1), make_task(12, 20, 5)
    path = journal.journal_path(tmp_path, device_fingerprint(target))
    asked = []
    for trials in (9, 20):
        # Without the final rounds the second run has to search on, as after an interruption.
        with Watched(target, templates="fault_templates", repeats=1, memory_limit=1 << 30) as measurer:
            (outcome,) = tune_tasks(
                [task], target, TuneOptions(effort="quick", trials=trials, early_stopping=99),
                RecordIndex.open(tmp_path, shipped=False),
                lambda records: journal.append(path, *[r for r in records if r.stage == "search"]),
                measurer, lambda event: None, templates=lambda workload, target: [MostlyFaulty(), Honest()],
            )  # fmt: skip
        assert outcome.config["kind"] in ("good", "slow")
        asked.append(measurer.asked)
    failed = {r.config: r.status for r in journal.read_records(path).records if r.status != "ok"}
    expected = {"segfault": "crash", "abort": "crash", "build_crash": "crash", "wrong": "wrong_answer"}
    assert failed
    assert all(expected[str(config["kind"])] == status for config, status in failed.items())
    assert not set(asked[0]) & set(asked[1])
    assert len(asked[0] + asked[1]) == len({*asked[0], *asked[1]})
