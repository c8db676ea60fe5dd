"""How a weight matrix is pruned: dense, unstructured, blocks, N:M, whole rows or whole columns.

A structure is claimed only when it holds (almost) everywhere and a random mask of the same density would not show it:
`_surprise` is the decimal logarithm of the odds against chance.
"""

from __future__ import annotations

import math

import numpy as np

from sparsetvm.analysis.group_counts import SAMPLED, may_hold
from sparsetvm.analysis.per_pattern import per_pattern
from sparsetvm.core.pattern import PatternSummary, pattern_digest

DENSE_BELOW = 0.20  # share of zeros under which a weight counts as dense
MAX_BLOCK = 64
N_M_GROUPS = (2, 4, 8, 16, 32)
_FULL = (
    0.95  # share of non-zeros in the kept part that a structure must have; pruned weights may hold zeros by accident
)
_SURPRISE = 6.0


@per_pattern
def summarize(weight: np.ndarray) -> PatternSummary:
    """Summary of an (m, k) weight matrix; m is output features, k the reduction. About 10 ms for 1024 x 1024.

    Rows and columns go before blocks, blocks before N:M. Blocks and N:M groups are looked for at multiples of their
    size from (0, 0). Of the blocks that hold, the one with the most elements is named, the taller of two.
    """
    mask = weight != 0
    m, k = mask.shape
    per_row = np.count_nonzero(mask, axis=1)
    nnz = int(per_row.sum())
    kind, block = _structure(mask, nnz, per_row)
    return PatternSummary(
        kind,  # type: ignore[arg-type]
        block,
        nnz / (m * k) if nnz else 0.0,
        float(per_row.max() * m / nnz) if nnz else 0.0,
        int(np.count_nonzero(per_row == 0)),
        pattern_digest(weight),
    )


def _structure(mask: np.ndarray, nnz: int, per_row: np.ndarray) -> tuple[str, tuple[int, int]]:
    zeros = mask.size - nnz
    if zeros < DENSE_BELOW * mask.size:
        return "dense", (1, 1)
    if nnz == 0:
        return "rows", (1, 1)
    whole = _whole_lines(mask, nnz, per_row)
    if whole:
        return whole, (1, 1)
    block = _block(mask, nnz)
    if block != (1, 1):
        return "block", block
    group = _n_of_m(mask, nnz)
    return ("n:m", group) if group else ("unstructured", (1, 1))


def _whole_lines(mask: np.ndarray, nnz: int, per_row: np.ndarray) -> str | None:
    """ "rows" or "columns" when dropping empty lines leaves an almost full matrix; the one that explains more zeros."""
    m, k = mask.shape
    live_rows = int(np.count_nonzero(per_row))
    live_columns = int(np.count_nonzero(mask.any(axis=0)))
    if nnz < _FULL * live_rows * live_columns:
        return None
    density = nnz / mask.size
    chance = {"rows": _surprise(m, 0, k, density), "columns": _surprise(k, 0, m, density)}
    kind = "rows" if live_rows * k <= live_columns * m else "columns"
    return kind if chance[kind] >= _SURPRISE else None


def _block(mask: np.ndarray, nnz: int) -> tuple[int, int]:
    """Largest aligned block that holds, (1, 1) when none does.

    If r x c holds so does r/2 x c, so sizes are reached by doubling and a random mask is done after two looks.
    """
    m, k = mask.shape
    best, seen = (1, 1), {(1, 1)}
    frontier = {(1, 1): mask.astype(np.uint16)}
    while frontier:
        grown: dict[tuple[int, int], np.ndarray] = {}
        for (r, c), counts in frontier.items():
            for block, axis in (((2 * r, c), 0), ((r, 2 * c), 1)):
                if block in seen or block[axis] > MAX_BLOCK or block[axis] > mask.shape[axis]:
                    continue
                seen.add(block)
                sums = _pair_sums(counts, axis)
                cells = np.outer(_spans(m, block[0]), _spans(k, block[1]))
                if _blocks_hold(sums, cells, nnz, mask.size):
                    grown[block] = sums
        best = max(best, *grown, key=lambda b: (b[0] * b[1], b[0])) if grown else best
        frontier = grown
    return best


def _pair_sums(counts: np.ndarray, axis: int) -> np.ndarray:
    """Sums of neighbours along `axis`; a last one without a neighbour stays alone."""
    even, odd = (counts[0::2], counts[1::2]) if axis == 0 else (counts[:, 0::2], counts[:, 1::2])
    sums = even.copy()
    if axis == 0:
        sums[: odd.shape[0]] += odd
    else:
        sums[:, : odd.shape[1]] += odd
    return sums


def _spans(size: int, step: int) -> np.ndarray:
    """Lengths of the pieces of `step` that cover `size`."""
    return np.minimum(step, size - np.arange(0, size, step)).astype(np.int64)


def _blocks_hold(sums: np.ndarray, cells: np.ndarray, nnz: int, size: int) -> bool:
    kept = sums > 0
    area = int(cells[kept].sum())
    if nnz < _FULL * area:
        return False
    full = np.count_nonzero(sums[kept] == cells[kept])
    broken = int(np.count_nonzero(kept)) - int(full)
    return _surprise(sums.size, broken, size / sums.size, nnz / size) >= _SURPRISE


def _surprise(pieces: int, broken: int, cells: float, density: float) -> float:
    """-log10 of the chance that all but `broken` of the pieces of a random mask are full or empty."""
    uniform = density**cells + (1.0 - density) ** cells
    if uniform >= 1.0:
        return 0.0
    ways = math.lgamma(pieces + 1) - math.lgamma(broken + 1) - math.lgamma(pieces - broken + 1)
    return -((pieces - broken) * math.log10(uniform) if uniform > 0 else -math.inf) - ways / math.log(10)


def _n_of_m(mask: np.ndarray, nnz: int) -> tuple[int, int] | None:
    """(n, m) when K is a multiple of m, (almost) all groups of m hold exactly n non-zeros, and none holds more.

    2:4 is 4:8 as well: the smallest m is named.
    """
    density = nnz / mask.size
    for size in N_M_GROUPS:
        if mask.shape[1] % size:
            break
        groups = mask.reshape(-1, size)
        if not may_hold(np.add.reduce(groups[::SAMPLED], axis=1, dtype=np.uint8), groups.shape[0], _FULL):
            continue
        counts = np.add.reduce(groups, axis=1, dtype=np.uint8)
        most = int(counts.max())
        if most in (0, size):
            continue
        exact = int(np.count_nonzero(counts == most))
        if exact < _FULL * counts.size:
            continue
        chance = math.comb(size, most) * density**most * (1.0 - density) ** (size - most)
        ways = math.lgamma(counts.size + 1) - math.lgamma(exact + 1) - math.lgamma(counts.size - exact + 1)
        if -exact * math.log10(chance) - ways / math.log(10) >= _SURPRISE:
            return most, size
    return None
