"""Latency of a compiled model beside competitors: interleaved in one process, in rounds of shuffled order."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np

from sparsetvm.core.results import Event, Latency, Progress

_ROUNDS = 10
_WARM_UP_RUNS = 3
_LEAST_PER_TURN, _MOST_PER_TURN = 2, 10_000

Run = Callable[[], object]


@dataclass(frozen=True)
class BenchPlan:
    """How long to time each competitor.

    seconds: about so long and at most twice that, but at least two runs per round. iterations: so many runs of each
    instance instead. warm_up: seconds of runs before, at least three runs. percentiles: in (0, 100], reported beside
    p50, p90 and p99.
    """

    seconds: float = 3.0
    iterations: int | None = None
    warm_up: float = 0.0
    percentiles: tuple[float, ...] = ()

    @property
    def longest_turn(self) -> float:
        """Seconds after which a turn ends early: on a busy machine runs may take longer than those before suggested."""
        return math.inf if self.iterations is not None else 2 * self.seconds / _ROUNDS

    def per_round(self, run: Run) -> list[int]:
        """Timed runs of one instance in each round; warms it up to find out."""
        one = _warm_up(run, self.warm_up)
        if self.iterations is None:
            return [int(min(max(_LEAST_PER_TURN, self.seconds / _ROUNDS / one), _MOST_PER_TURN))] * _ROUNDS
        rounds = min(_ROUNDS, self.iterations)
        return [self.iterations // rounds + (at < self.iterations % rounds) for at in range(rounds)]


@dataclass
class Timed:
    """Runs of one competitor. times: milliseconds, in their order; wall: seconds that all of them took together."""

    times: list[float] = field(default_factory=list)
    wall: float = 0.0


def interleave(runs: Mapping[str, Sequence[Run]], plan: BenchPlan, tell: Progress | None = None) -> dict[str, Timed]:
    """Milliseconds per run of all competitors, which take turns: a noisy minute hits all of them alike.

    runs: name -> instances. Those of one competitor run at the same time, each in a thread of its own.
    """
    timed = {name: Timed() for name in runs}
    counts = {name: plan.per_round(instances[0]) for name, instances in runs.items()}
    order = list(runs)
    shuffle = random.Random(0)  # noqa: S311 - the order of turns is no secret
    with ExitStack() as stack:
        pools = {name: _Instances(instances, stack) for name, instances in runs.items()}
        rounds = len(next(iter(counts.values()), ()))
        for at in range(rounds):
            if tell is not None:
                tell(Event(kind="round", message=f"timing {', '.join(runs)}: round {at + 1} of {rounds}"))
            shuffle.shuffle(order)
            for name in order:
                times, wall = pools[name].turn(counts[name][at], plan.longest_turn)
                timed[name].times += times
                timed[name].wall += wall
    return timed


class _Instances:
    """The instances of one competitor."""

    def __init__(self, runs: Sequence[Run], stack: ExitStack) -> None:
        self._runs = runs
        self._pool = stack.enter_context(ThreadPoolExecutor(len(runs))) if len(runs) > 1 else None

    def turn(self, count: int, seconds: float) -> tuple[list[float], float]:
        """Milliseconds of `count` runs of each instance, fewer after `seconds`; and the seconds that they took."""
        if self._pool is None:
            times, begun, end = _timed_runs(self._runs[0], count, seconds, None)
            return times, end - begun
        barrier = threading.Barrier(len(self._runs))
        found = list(self._pool.map(lambda run: _timed_runs(run, count, seconds, barrier), self._runs))
        wall = max(end for _, _, end in found) - min(begun for _, begun, _ in found)
        return [ms for times, _, _ in found for ms in times], wall


def _timed_runs(
    run: Run, count: int, seconds: float, barrier: threading.Barrier | None
) -> tuple[list[float], float, float]:
    """(milliseconds of each run, begin, end)."""
    try:
        run()  # the first run after another competitor meets its caches
    except BaseException:
        if barrier is not None:
            barrier.abort()
        raise
    if barrier is not None:
        barrier.wait()
    times: list[float] = []
    begun = at = time.perf_counter()
    while len(times) < count and (at - begun < seconds or len(times) < _LEAST_PER_TURN):
        run()
        now = time.perf_counter()
        times.append((now - at) * 1e3)
        at = now
    return times, begun, at


def _warm_up(run: Run, seconds: float) -> float:
    """Run for so long, at least a few times; the seconds of one run more."""
    end = time.perf_counter() + seconds
    done = 0
    while done < _WARM_UP_RUNS or time.perf_counter() < end:
        run()
        done += 1
    begun = time.perf_counter()
    run()
    return max(time.perf_counter() - begun, 1e-7)


def latency_of(times: Sequence[float], percentiles: Sequence[float] = (), wall: float | None = None) -> Latency:
    """What is reported of some times in milliseconds. wall: seconds that they took together, None for their sum."""
    values = np.asarray(times)
    median, p90, p99, *more = np.percentile(values, (50, 90, 99, *percentiles))
    seconds = max(values.sum() / 1e3 if wall is None else wall, 1e-12)
    return Latency(
        median=float(median),
        p90=float(p90),
        p99=float(p99),
        min=float(values.min()),
        max=float(values.max()),
        mean=float(values.mean()),
        repeats=values.size,
        per_second=values.size / seconds,
        percentiles={f"p{percentile:g}": float(ms) for percentile, ms in zip(percentiles, more, strict=True)},
    )
