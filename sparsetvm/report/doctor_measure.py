"""The check of `doctor` that measures: a layer of the shipped model, sparse and dense, as `tune` measures it."""

from __future__ import annotations

import time
from pathlib import Path

from sparsetvm.core.target import Target
from sparsetvm.examples import digits_path
from sparsetvm.measure.pool import Measurer
from sparsetvm.rewrite.prepare import prepare
from sparsetvm.search.candidates import candidates_of

LAYER = "conv2"


def measure_example(target: Target) -> tuple[str, list[str]]:
    """(what was measured, what went wrong): the default and the dense config of one layer, built, checked, timed."""
    task = prepare(Path(digits_path()), target).tasks[LAYER]
    candidates = candidates_of(task.workload, target)
    dense = next(config for config in candidates.first() if candidates.is_dense(config))
    begun = time.monotonic()
    with Measurer(target, repeats=3) as measurer:
        results = measurer.measure(task, [candidates.default, dense])
    wrong = [
        f"{result.config.template}: {result.status} {result.message}".strip() for result in results if not result.ok
    ]
    times = ", ".join(f"{result.config.template} {result.best_us:.1f} us" for result in results if result.ok)
    return f"{task.workload.describe()} of the example: {times}; right answers, {time.monotonic() - begun:.1f} s", wrong
