"""Latency of a compiled model beside competitors: interleaved in one process, in rounds of shuffled order."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping

import numpy as np

from sparsetvm.core.results import Latency

_ROUNDS = 10
_WARM_UP = 3


def interleave(runs: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, Latency]:
    """Milliseconds per call of each of `runs`, which take turns: a noisy minute hits all of them alike.

    Each gets about `seconds` in all and at least two calls per round.
    """
    per_turn = {name: _calls_per_turn(run, seconds) for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    order = list(runs)
    shuffle = random.Random(0)  # noqa: S311 - the order of turns is no secret
    for _ in range(_ROUNDS):
        shuffle.shuffle(order)
        for name in order:
            runs[name]()  # the first call after another competitor meets its caches
            for _ in range(per_turn[name]):
                begun = time.perf_counter()
                runs[name]()
                times[name].append((time.perf_counter() - begun) * 1e3)
    return {name: latency_of(values) for name, values in times.items()}


def _calls_per_turn(run: Callable[[], object], seconds: float) -> int:
    for _ in range(_WARM_UP):
        run()
    begun = time.perf_counter()
    run()
    one = max(time.perf_counter() - begun, 1e-7)
    return int(min(max(2, seconds / _ROUNDS / one), 10_000))


def latency_of(times: list[float]) -> Latency:
    """Percentiles of some times in milliseconds."""
    median, p90, p99 = np.percentile(times, (50, 90, 99))
    rate = 1e3 * len(times) / max(sum(times), 1e-9)
    return Latency(
        median=float(median), p90=float(p90), p99=float(p99), min=min(times), repeats=len(times), per_second=rate
    )
