"""Measure many candidates of which some crash, hang, flood or write where they must not; the measurer must not care.

    python scripts/stress_measure.py [--trials 1000] [--faults 0.05] [--json OUT.json]

Each trial is a small matrix product, or with the chance --faults one of the faults of tests/tvm/fault_templates.py.
Each must get the status that its fault deserves, the process tree must be as before after each fault, a trial that ran
into a limit must be over within a second of it, and the median of the first trials after a fault that cost the worker
must be below half a second. Exit code 1 otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import statistics
import sys
import time
import uuid
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import psutil

from sparsetvm.core.config import Config
from sparsetvm.core.layout import PLAIN
from sparsetvm.core.pattern import PatternSummary, pattern_digest
from sparsetvm.core.record import STATUSES
from sparsetvm.core.target import host_target
from sparsetvm.core.task import Task
from sparsetvm.core.workload import Epilogue, Workload
from sparsetvm.measure.pool import Measurer

_TEMPLATES = Path(__file__).parents[1] / "tests" / "tvm"
_MARK = "STRESS_MEASURE_RUN"
_RECOVERY = 0.5  # seconds: the median of the first trials after a lost worker
_OVERSHOOT = 1.0  # seconds beyond a limit
_WRONG = ("wrong", "unwritten", "changes_input", "changes_weight", "gone")
_OUTSIDE = ("overrun", "underrun", "overrun_input", "underrun_input", "overrun_weight", "underrun_weight")
EXPECTED = {
    "good": "ok",
    "flood": "ok",
    "build_invalid": "invalid",
    "build_error": "compile_error",
    "build_crash": "crash",
    "build_hang": "compile_timeout",
    "run_error": "run_error",
    "segfault": "crash",
    "abort": "crash",
    "hang": "run_timeout",
    "flood_forever": "run_timeout",
    "children": "run_timeout",
    "daemon": "run_timeout",
    "memory_hog": "out_of_memory",
    **dict.fromkeys(_WRONG + _OUTSIDE, "wrong_answer"),
}
_LIMITS = {"compile_timeout": 3.0, "run_timeout": 1.0}


@dataclass
class Outcome:
    """misnamed: trials whose status is not that of their fault. leaks: faults after which processes were left.

    recovery: seconds of the first trial after each lost worker. overshoot: seconds that a trial took beyond its limit
    and what a good trial takes.
    """

    trials: int = 0
    faults: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    misnamed: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)
    left_at_the_end: int = 0
    good: list[float] = field(default_factory=list)
    recovery: list[float] = field(default_factory=list)
    overshoot: list[float] = field(default_factory=list)

    def figures(self) -> dict[str, object]:
        return {
            "trials": self.trials,
            "faults": self.faults,
            "statuses": self.statuses,
            "misnamed": len(self.misnamed),
            "leaks": len(self.leaks) + self.left_at_the_end,
            "good_median_s": _median(self.good),
            "recovery_median_s": _median(self.recovery),
            "recovery_max_s": max(self.recovery, default=0.0),
            "overshoot_max_s": max(self.overshoot, default=0.0),
        }

    @property
    def sound(self) -> bool:
        """True when every trial has its status and no process is left."""
        named = not self.misnamed and sum(self.statuses.values()) == self.trials
        return named and set(self.statuses) <= set(STATUSES) and not self.leaks and not self.left_at_the_end

    @property
    def passed(self) -> bool:
        quick = _median(self.recovery) < _RECOVERY and max(self.overshoot, default=0.0) < _OVERSHOOT
        return self.sound and quick


def _median(values: list[float]) -> float:
    return statistics.median(values) if values else 0.0


def make_task() -> Task:
    """A product that takes microseconds, so that a trial is little but overhead."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((12, 20)).astype(np.float32)
    weight[rng.random(weight.shape) < 0.8] = 0
    pattern = PatternSummary("unstructured", (1, 1), 0.2, 1.5, 0, pattern_digest(weight))
    return Task("layer", Workload("matmul", 12, 20, 5, PLAIN, PLAIN, Epilogue(), pattern), weight, None)


def workers(run: str) -> set[int]:
    """Processes that the measurer of this run has started, wherever they hang: all inherit its environment."""
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(_MARK) == run and process.pid != os.getpid():
                found.add(process.pid)
    return found


def stress(kinds: list[str]) -> Outcome:
    """One trial of each kind, in this order."""
    outcome, task = Outcome(), make_task()
    run = os.environ[_MARK] = uuid.uuid4().hex
    os.environ["PYTHONPATH"] = os.pathsep.join([str(_TEMPLATES), os.environ.get("PYTHONPATH", "")])
    options = {"build_timeout": _LIMITS["compile_timeout"], "run_timeout": _LIMITS["run_timeout"]}
    with Measurer(host_target(1), templates="fault_templates", memory_limit=1 << 30, repeats=3, **options) as measurer:
        measurer.measure(task, [Config.of("test.faulty", kind="good", copy=0)])
        usual = len(workers(run))
        lost = False
        for number, kind in enumerate(kinds):
            begun = time.monotonic()
            result = measurer.measure(task, [Config.of("test.faulty", kind=kind, copy=number % 2000)])[0]
            seconds = time.monotonic() - begun
            outcome.trials += 1
            outcome.statuses[result.status] = outcome.statuses.get(result.status, 0) + 1
            if result.status != EXPECTED[kind]:
                outcome.misnamed.append(f"{number} {kind}: {result.status} {result.message}")
            if kind == "good":
                (outcome.recovery if lost else outcome.good).append(seconds)
            else:
                outcome.faults += 1
                if (count := len(workers(run))) > usual:
                    outcome.leaks.append(f"{number} {kind}: {count} processes, usual are {usual}")
            lost = result.status in ("crash", "out_of_memory", "compile_timeout", "run_timeout")
            if result.status in _LIMITS:
                outcome.overshoot.append(seconds - _LIMITS[result.status] - _median(outcome.good))
    outcome.left_at_the_end = len(workers(run))
    return outcome


def kinds_of(trials: int, faults: float, seed: int) -> list[str]:
    """Good trials with a share of faults strewn in; each kind of fault as often as every other."""
    rng = random.Random(seed)
    bad = [kind for kind in EXPECTED if kind != "good"]
    rng.shuffle(bad)
    chosen = ["good"] * trials
    for number, at in enumerate(rng.sample(range(trials), round(trials * faults))):
        chosen[at] = bad[number % len(bad)]
    return chosen


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--faults", type=float, default=0.05, help="share of the trials")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    kinds = kinds_of(args.trials, args.faults, args.seed)
    outcome = stress(kinds)
    for name, value in outcome.figures().items():
        print(f"{name:>18}  {value:.3f}" if isinstance(value, float) else f"{name:>18}  {value}")
    print(f"{'kinds':>18}  {dict(Counter(kinds))}")
    for problem in outcome.misnamed + outcome.leaks:
        print(f"  {problem}")
    print("passed" if outcome.passed else "FAILED")
    if args.json:
        document = {"schema": 1, "passed": outcome.passed, **outcome.figures(), "details": asdict(outcome)}
        args.json.write_text(json.dumps(document, indent=2))
    return 0 if outcome.passed else 1


if __name__ == "__main__":
    sys.exit(main())
