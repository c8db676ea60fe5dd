"""How unlikely a structure is in a random mask: decimal logarithms of the odds against chance."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

import numpy as np

# Odds that a structure must have after all hypotheses that were tried are taken off.
SURPRISE = 6.0


def too_few(trials: float, seen: float, rate: float) -> float:
    """-log10 of a bound of the chance to see at most `seen` of `trials` independent events of that mean rate.

    Hoeffding's bound of 1963, which also holds where the rates differ.
    """
    if trials <= 0 or not 0.0 < rate < 1.0:
        return 0.0
    share = seen / trials
    if share >= rate:
        return 0.0
    divergence = (1.0 - share) * math.log((1.0 - share) / (1.0 - rate))
    if share > 0:
        divergence += share * math.log(share / rate)
    return trials * divergence / math.log(10)


def log10_choices(size: float, chosen: np.ndarray | float) -> np.ndarray:
    """log10 of the ways to choose `chosen` (any shape) of `size` things."""
    from scipy.special import gammaln  # not at the top: it takes a quarter of a second

    ways = gammaln(size + 1.0) - gammaln(np.add(chosen, 1.0)) - gammaln(np.subtract(size, chosen) + 1.0)
    return np.asarray(ways / math.log(10))


def log10_partitions(sizes: Iterable[int]) -> float:
    """log10 of the ways to divide things into groups of these sizes, whose order does not matter."""
    counts = Counter(sizes)
    total = sum(size * count for size, count in counts.items())
    ways = math.lgamma(total + 1)
    for size, count in counts.items():
        ways -= count * math.lgamma(size + 1) + math.lgamma(count + 1)
    return ways / math.log(10)
