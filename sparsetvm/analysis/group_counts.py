"""N:M patterns along either axis."""

from __future__ import annotations

import math

import numpy as np

from sparsetvm.analysis.chance import SURPRISE, log10_choices

_SIZES = (2, 4, 8, 16, 32)
_ITERATIONS = 50
_LINES = 32  # looked at at a time: random masks are told by the first few
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
        counts = _counts(mask[:, : groups * size].reshape(-1, groups, size), whole)
        most = int(counts.max(initial=0)) if counts is not None else 0
        if counts is None or most in (0, size):
            continue
        exact = int(np.count_nonzero(counts == most))
        if exact < _EXACT * counts.size or not _surprising(counts, most, exact, size):
            continue
        return most, size
    return None


def _counts(grouped: np.ndarray, whole: np.ndarray) -> np.ndarray | None:
    """Non-zeros of each group in (lines, groups, size), of the groups in `whole`; None as soon as too many differ."""
    size = grouped.shape[2]
    total = grouped.shape[0] * whole.size
    seen: np.ndarray = np.zeros(size + 1, np.int64)
    parts = [np.zeros((0, whole.size), np.uint8)]
    for begin in range(0, grouped.shape[0], _LINES):
        part = grouped[begin : begin + _LINES, whole].sum(axis=2, dtype=np.uint8)
        seen += np.bincount(part.ravel(), minlength=size + 1)
        if seen.sum() - seen.max() > (1.0 - _EXACT) * total:
            return None
        parts.append(part)
    return np.concatenate(parts)


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
