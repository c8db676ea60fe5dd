"""Timing of a built kernel inside the process that runs it."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

_PAGE = 4096
_FLUSHED_PAGES = 16384
_MOST_COLD_CALLS = 9
MIN_REPEAT_SECONDS = 2e-3  # long against the clock and against one interrupt

# Runs the kernel `number` times in a row and returns seconds per call.
TimeCalls = Callable[[int], float]


@dataclass(frozen=True)
class Plan:
    """calls of one repeat, and how many repeats."""

    number: int
    repeats: int


def plan_repeats(seconds_per_call: float, repeats: int, budget: float) -> Plan:
    """Calls that make a repeat last about 2 ms; as many of `repeats` as fit into `budget` seconds, at least one."""
    number = max(1, math.ceil(MIN_REPEAT_SECONDS / max(seconds_per_call, 1e-9)))
    affordable = int(budget / max(number * seconds_per_call, 1e-9))
    return Plan(number, max(1, min(repeats, affordable)))


def warm_up(time_calls: TimeCalls) -> float:
    """Fill caches and branch predictors; seconds per call to plan with."""
    first = time_calls(1)
    if first >= MIN_REPEAT_SECONDS:
        return first
    return time_calls(max(1, min(1000, int(MIN_REPEAT_SECONDS / 2 / max(first, 1e-9)))))


def time_repeats(time_calls: TimeCalls, repeats: int, budget: float) -> tuple[float, ...]:
    """Microseconds per call of each repeat, after a warm-up. The median of the repeats is the time that counts."""
    plan = plan_repeats(warm_up(time_calls), repeats, budget)
    return tuple(time_calls(plan.number) * 1e6 for _ in range(plan.repeats))


def time_interleaved(
    kernels: Sequence[TimeCalls], orders: Sequence[Sequence[int]], budget: float
) -> Iterator[tuple[int, float | None]]:
    """Time kernels side by side so that drift of the machine hits all alike.

    `orders` has one order of the kernels per round. Yields (kernel, None) before and (kernel, microseconds) after each
    timing, so that the caller can say which kernel is running.
    """
    plans: dict[int, Plan] = {}
    for order in orders:
        for index in order:
            yield index, None
            if index not in plans:
                plans[index] = plan_repeats(warm_up(kernels[index]), 1, budget / max(1, len(orders) * len(kernels)))
            kernels[index](1)  # the other kernels have just used the caches
            yield index, kernels[index](plans[index].number) * 1e6


class CacheFlush:
    """Evicts a kernel's code, weights and page translations, as the other layers of a large network do."""

    def __init__(self, l2_bytes: int) -> None:
        import numpy as np

        self._lines = np.zeros(3 * l2_bytes, np.uint8)
        # One byte of more pages than the second-level TLB has entries.
        pages = np.zeros(_FLUSHED_PAGES * _PAGE, np.uint8)
        pages[::_PAGE] = 1
        self._pages = pages[::_PAGE]

    def __call__(self) -> None:
        self._lines.sum()
        self._pages.sum()


def time_cold(function: Any, arguments: Sequence[Any], flush: Callable[[], None], warm: Sequence[Any]) -> TimeCalls:
    """Times single calls, each after `flush`; the arrays `warm` (what the layer before just wrote) are read again.

    The clock and the Python call add about 1 us, to all candidates alike.
    """

    def time_calls(number: int) -> float:
        times = []
        for _ in range(min(number, _MOST_COLD_CALLS)):
            flush()
            for array in warm:
                array.sum()
            begun = time.perf_counter()
            function(*arguments)
            times.append(time.perf_counter() - begun)
        return statistics.median(times)

    return time_calls


def time_evaluator(module: Any, symbol: str, arguments: Sequence[Any]) -> TimeCalls:
    """Times calls in TVM's own loop: a Python call costs as much as a small kernel."""
    import tvm

    def time_calls(number: int) -> float:
        evaluator = module.time_evaluator(symbol, tvm.cpu(), number=number, repeat=1)
        return float(evaluator(*arguments).results[0])

    return time_calls
