"""Which times are doubted: they are taken once more before they count, and impossible ones never count.

A time is doubted when
- it varies: the middle half of the repeats spans more than 10 % of their median;
- it is far faster than expected: less than half of the best time of the task so far, once three candidates worked, or
  of what the roofline of `analysis` allows at `_CLOCK`;
- it is impossible: fewer FMAs than the pattern has non-zeros (for activations that are not zero) would fit into it.
Of two series that vary the calmer one counts, of one that was too fast and its repetition the slower: luck never wins.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import msgspec

from sparsetvm.analysis.roofline import dense_cycles, sparse_cycles
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload

_SPREAD = 0.10
_LEAP = 0.5
_ENOUGH = 3  # candidates that worked, before the best of them says anything
_CLOCK = 6e9  # Hz, above what any core reaches
_FMA_UNITS = 2
_NOISE = 0.05  # relative difference of two timings of one kernel; 2 % are common
_WORSE = 1.5


class Limits(msgspec.Struct, frozen=True):
    """Microseconds per call: below `surprising` a time is doubted, below `impossible` it is not believed at all."""

    surprising: float = 0.0
    impossible: float = 0.0


def least_us(workload: Workload, target: Target) -> float:
    """Microseconds that one FMA per product of non-zeros takes on all cores of the target; 0 when it is no CPU."""
    if target.kind != "cpu":
        return 0.0
    fmas = workload.nnz * workload.active * workload.n / target.lanes
    return fmas / (_FMA_UNITS * _CLOCK * target.threads) * 1e6


def roofline_us(workload: Workload, target: Target) -> float:
    """Microseconds of the faster of a good dense and a good sparse kernel at the highest clock; 0 when it is no CPU."""
    if target.kind != "cpu":
        return 0.0
    cycles = min(dense_cycles(workload, target), sparse_cycles(workload, target))
    return cycles / (_CLOCK * target.threads) * 1e6


class Expectation:
    """What the times of one task should be, from the machine and from the candidates so far."""

    def __init__(self, workload: Workload, target: Target) -> None:
        self._impossible = least_us(workload, target)
        self._surprising = max(self._impossible, _LEAP * roofline_us(workload, target))
        self._best = float("inf")
        self._good = 0

    def note(self, best_us: float) -> None:
        """A candidate worked and took this long."""
        self._best = min(self._best, best_us)
        self._good += 1

    def limits(self) -> Limits:
        """The limits for the next candidate."""
        leap = _LEAP * self._best if self._good >= _ENOUGH else 0.0
        return Limits(max(self._surprising, leap), self._impossible)


def spread(times_us: Sequence[float]) -> float:
    """The middle half of the times over their median; 0 for a single one."""
    if len(times_us) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(times_us, n=4, method="inclusive")
    return (high - low) / middle


def doubt(times_us: Sequence[float], limits: Limits) -> str:
    """Why the times should be taken again, "" when they need not."""
    median = statistics.median(times_us)
    if median < limits.surprising:
        return f"{median:.4g} us is far below the {limits.surprising:.4g} us that were expected"
    if spread(times_us) > _SPREAD:
        return f"times vary by {spread(times_us):.0%}"
    return ""


def settle(first: Sequence[float], second: Sequence[float], limits: Limits) -> tuple[float, ...]:
    """The series that counts, of a doubted one and its repetition."""
    if statistics.median(first) < limits.surprising:
        return tuple(first if statistics.median(first) > statistics.median(second) else second)
    return tuple(first if spread(first) < spread(second) else second)


def relative_difference(first: Sequence[float], second: Sequence[float]) -> float:
    """Of the medians of two series, over the smaller one."""
    low, high = sorted((statistics.median(first), statistics.median(second)))
    return high / low - 1.0


def noise_warning(noise: float, told: float = 0.0) -> str:
    """What to tell the user when two timings of one kernel differ by `noise`, "" when that is no news.

    told: the noise that was told last, for another task of the run.
    """
    if noise <= max(_NOISE, _WORSE * told):
        return ""
    return (
        f"noisy machine: the same kernel timed twice differs by {noise:.0%}, smaller differences between configs mean "
        "nothing; end other programs and fix the clock, then tune again"
    )
