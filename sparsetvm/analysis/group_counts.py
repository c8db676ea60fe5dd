"""N:M patterns along either axis."""

from __future__ import annotations

import math

import numpy as np

from sparsetvm.analysis.chance import SURPRISE, log10_choices

_SIZES = (2, 4, 8, 10, 16, 20, 32)
SAMPLED = 8  # every 8th line, or group, is looked at first
_ITERATIONS = 50
_EXACT = 0.95  # share of groups that must hold n; pruned weights may hold zeros by accident


def n_of_m(mask: np.ndarray) -> tuple[int, int] | None:
    """(n, m) of a (lines, k) mask: (almost) every m neighbours of a line hold n non-zeros, and none holds more.

    Dead lines, groups with a dead column and what is left at the end are not looked at. 2:4 is 4:8 as well: the
    smallest m is named.
    """
    alive = np.asarray(mask.any(axis=0))
    mask = mask[mask.any(axis=1)]
    for size in _SIZES:
        groups = mask.shape[1] // size
        if not groups:
            break
        whole = np.flatnonzero(alive[: groups * size].reshape(groups, size).all(axis=1))
        grouped = mask[:, : groups * size].reshape(-1, groups, size)
        sample = grouped[::SAMPLED, whole].sum(axis=2, dtype=np.uint8)
        if not may_hold(sample, mask.shape[0] * whole.size, _EXACT):
            continue
        counts: np.ndarray = grouped[:, whole].sum(axis=2, dtype=np.uint8)
        most = int(counts.max(initial=0))
        if most in (0, size):
            continue
        exact = int(np.count_nonzero(counts == most))
        if exact < _EXACT * counts.size or not _surprising(counts, most, exact, size):
            continue
        return most, size
    return None


def may_hold(sample: np.ndarray, groups: int, exact: float) -> bool:
    """False when a share `exact` of all groups cannot hold the same number (not 0) of non-zeros, given the counts of
    some of them: the others of the sample are too many already. Random masks end here, after an eighth of the work.
    """
    agree = int(np.bincount(sample.ravel(), minlength=2)[1:].max())
    return sample.size - agree <= (1.0 - exact) * groups


def _surprising(counts: np.ndarray, most: int, exact: int, size: int) -> bool:
    share = float(counts.mean()) / size
    width = counts.shape[1] * size
    density = share
    # Lines without a non-zero were left out, so a random mask has fewer than those that are left.
    for _ in range(_ITERATIONS):
        density = share * (1.0 - (1.0 - density) ** width)
    if density < 1e-9:  # every line holds one: what a live line must
        return False
    live = -math.expm1(width * math.log1p(-density))
    chance = math.comb(size, most) * density**most * (1.0 - density) ** (size - most) / live ** (1.0 / counts.shape[1])
    odds = -exact * math.log10(min(chance, 1.0)) - float(log10_choices(counts.size, exact))
    return odds - math.log10(2 * sum(_SIZES)) >= SURPRISE  # n of every size, along both axes
