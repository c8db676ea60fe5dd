"""The same seed and measurements give the same trials, in any process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import sparsetvm

_SEARCH = """
from search_cases import TARGET, FakeIndex, make_task, measured, templates
from sparsetvm.search.budget import TuneOptions
from sparsetvm.search.replay import ReplayMeasurer
from sparsetvm.search.tuner import tune_tasks

def tune(tasks, index, trials):
    measurer, journal = ReplayMeasurer(measured), []
    options = TuneOptions(effort="default", trials=trials)
    tune_tasks(tasks, TARGET, options, index, journal.extend, measurer, lambda event: None, 7, templates=templates)
    return measurer.asked + measurer.retimed, journal

first, records = tune([make_task("a"), make_task("b", k=256, digest="b")], FakeIndex(), 48)
second, _ = tune([make_task("c", m=384, digest="c")], FakeIndex(records=records), 24)
print(*first, *second, sep="\\n")
"""


def _trials(hash_seed: str) -> list[str]:
    roots = [str(Path(sparsetvm.__file__).parents[1]), str(Path(__file__).parent)]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(roots)}
    done = subprocess.run(
        [sys.executable, "-c", _SEARCH], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_same_seed_and_measurements_give_the_same_trials_in_any_process() -> None:
    one, other = _trials("1"), _trials("4242")
    assert len(one) > 72
    assert one == other
