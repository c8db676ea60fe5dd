"""Along one axis: into blocks of how many lines, from which offset, do the lines of a mask fall?

The lines of a row of blocks have equal masks whatever the blocks' widths are, so both axes are independent questions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sparsetvm.analysis.lines import Lines

MAX_BLOCK = 64
ALIKE = 0.25  # distance of lines of one block over that of random lines: strays and accidental zeros
_STRICT = 0.1  # the same where dead lines are lines as others
_SLACK = 0.02
_DRIFT = 0.002
_CHOICES = 16  # crossing blocks that blocks under a permutation need


@dataclass(frozen=True)
class AxisBlocks:
    """Blocks of `size` lines; the first full block begins at `offset`.

    order: (total,) permutation of the axis under which they show, None where they already do. hypotheses: log10 of how
    many were tried. groups: block of each live line. alike: groups whose lines are alike, smaller or larger ones.
    filled: dead lines are needed to complete blocks.
    """

    lines: Lines
    size: int
    offset: int
    order: np.ndarray | None
    hypotheses: float
    groups: np.ndarray
    alike: np.ndarray
    filled: bool = False

    def surplus(self, repeats: int) -> float:
        """Decimal odds against chance less hypotheses, when `repeats` crossing lines go together in blocks."""
        # Among few different lines many are alike, and how many depends on more than the model of chance knows.
        if self.order is not None and self.lines.choices < _CHOICES * repeats:
            return -math.inf
        order = np.argsort(self.alike, kind="stable")
        return self.lines.evidence(order, self.alike[order], repeats) - self.hypotheses


def block_numbers(positions: np.ndarray, size: int, offset: int) -> np.ndarray:
    """Number of the block that each position of an axis lies in."""
    return np.asarray((positions - offset % size + size) // size)


def aligned_blocks(lines: Lines) -> AxisBlocks | None:
    """The largest blocks that a grid without a permutation shows, of any size up to 64 and at any offset.

    Neighbouring lines may differ only where a block ends, so the distances are summed by position modulo the size.
    """
    if lines.counts.size < 2 or not lines.expected:
        return None
    # Dead lines end blocks as others do, unless lines were dropped one by one: then they may stand for any.
    return _aligned(lines, *_neighbours(lines), _STRICT) or _aligned(lines, *_live_neighbours(lines), ALIKE)


def _neighbours(lines: Lines) -> tuple[np.ndarray, np.ndarray, float]:
    """(positions of the second, distances, expected distance) of all neighbouring lines."""
    counts = np.zeros(lines.total, np.int64)
    counts[lines.positions] = lines.counts
    distances = counts[1:] + counts[:-1]  # right where one of both is dead
    live, seen, expected = _live_neighbours(lines)
    distances[live - 1] = seen
    share = lines.counts.size / lines.total
    return np.arange(1, lines.total), distances, share**2 * expected + 2 * share * (1 - share) * lines.counts.mean()


def _live_neighbours(lines: Lines) -> tuple[np.ndarray, np.ndarray, float]:
    pairs = np.flatnonzero(np.diff(lines.positions) == 1)
    return lines.positions[pairs + 1], lines.distances(pairs, pairs + 1), lines.expected


def _aligned(
    lines: Lines, ends: np.ndarray, distances: np.ndarray, expected: float, noisiest: float
) -> AxisBlocks | None:
    sizes = range(2, min(MAX_BLOCK, lines.total) + 1)
    sums = {size: _by_remainder(ends, distances, size, expected) for size in sizes}
    noise = _least_noise(list(sums.values()))
    if noise > noisiest:
        return None
    for size in reversed(sizes):
        offset = _offset(*sums[size], noise)
        if offset is None:
            continue
        groups = block_numbers(lines.positions, size, offset)
        return AxisBlocks(lines, size, offset, None, math.log10(2 * sum(sizes)), groups, groups)
    return None


def _by_remainder(ends: np.ndarray, distances: np.ndarray, size: int, expected: float) -> tuple[np.ndarray, np.ndarray]:
    """(seen, expected) distances of neighbours by where the second stands modulo `size`."""
    remainder = ends % size
    return np.bincount(remainder, distances, size), np.bincount(remainder, minlength=size) * expected


def _least_noise(sums: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Least seen over expected distance of any size when its blocks end at the worst remainder; 1 when there is none.

    Sizes with more than one remainder without neighbours are left out.
    """
    seen, expected = (np.zeros((len(sums), MAX_BLOCK)) for _ in range(2))
    for row, (distances, usual) in enumerate(sums):
        seen[row, : distances.size], expected[row, : usual.size] = distances, usual
    sizes = np.array([usual.size for _, usual in sums])
    empty = (expected == 0) & (np.arange(MAX_BLOCK) < sizes[:, None])
    ratio = np.where(empty, np.inf, np.where(expected > 0, seen / np.maximum(expected, 1e-9), -np.inf))
    worst = np.arange(sizes.size), np.argmax(ratio, axis=1)
    rest = expected.sum(axis=1) - expected[worst]
    told = (np.count_nonzero(empty, axis=1) <= 1) & (rest > 0)
    noise = (seen.sum(axis=1) - seen[worst])[told] / rest[told]
    return float(noise.min()) if told.any() else 1.0


def _worst(seen: np.ndarray, expected: np.ndarray) -> int:
    return int(np.argmax(np.where(expected > 0, seen / np.maximum(expected, 1e-9), np.inf)))


def _offset(seen: np.ndarray, expected: np.ndarray, noise: float) -> int | None:
    """Remainder at which blocks end when the lines are alike at all others; 0 where any would do."""
    allowed = np.minimum(2 * noise * expected + 4 * np.sqrt(noise * expected) + _SLACK * expected, ALIKE * expected)
    unlike = np.flatnonzero((seen > allowed) | (expected == 0))
    if unlike.size > 1:
        return None
    # Blocks of 16 end at every remainder of 17 once in a while: too seldom to see at one, too often in all.
    rest = expected.sum() - expected[worst := _worst(seen, expected)]
    if seen.sum() - seen[worst] > noise * rest + 4 * math.sqrt(noise * rest) + _DRIFT * rest:
        return None
    return int(unlike[0]) if unlike.size else 0
