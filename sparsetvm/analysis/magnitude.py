"""One-shot magnitude pruning of one weight matrix: the smallest weights, blocks, rows or columns become zero."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sparsetvm.errors import UsageError

_EXAMPLES = "unstructured, block:4x1, n:m:2:4, rows or columns"


@dataclass(frozen=True)
class PrunePattern:
    """What to prune. size: (r, c) of "block", (n, m) of "n:m", (1, 1) otherwise."""

    kind: Literal["unstructured", "block", "n:m", "rows", "columns"]
    size: tuple[int, int] = (1, 1)

    def __str__(self) -> str:
        if self.kind == "block":
            return f"block:{self.size[0]}x{self.size[1]}"
        return f"n:m:{self.size[0]}:{self.size[1]}" if self.kind == "n:m" else self.kind


def parse_pattern(text: str) -> PrunePattern:
    """Parse "unstructured", "block:RxC", "n:m:N:M", "rows" or "columns". Raises UsageError for anything else."""
    if text == "unstructured":
        return PrunePattern("unstructured")
    if text == "rows":
        return PrunePattern("rows")
    if text == "columns":
        return PrunePattern("columns")
    block = re.fullmatch(r"block:([1-9]\d{0,3})x([1-9]\d{0,3})", text)
    if block:
        return PrunePattern("block", (int(block[1]), int(block[2])))
    group = re.fullmatch(r"n:m:(\d{1,4}):(\d{1,4})", text)
    if group and 1 <= int(group[1]) < int(group[2]):
        return PrunePattern("n:m", (int(group[1]), int(group[2])))
    raise UsageError(f"'{text}' is no pattern to prune to", hint=f"write {_EXAMPLES}")


def check_sparsity(sparsity: float | None, pattern: PrunePattern) -> float:
    """The sparsity to aim at; N:M patterns have their own, which `sparsity` may repeat. Raises UsageError."""
    if pattern.kind == "n:m":
        implied = 1.0 - pattern.size[0] / pattern.size[1]
        if sparsity is not None and not abs(sparsity - implied) < 0.005:
            raise UsageError(
                f"pattern {pattern} has a sparsity of {implied:.4g}, not {sparsity:g}", hint=f"use {implied:.4g}"
            )
        return implied
    if sparsity is None or not 0.0 <= sparsity < 1.0:
        raise UsageError(
            f"sparsity {sparsity}: must be at least 0 and less than 1", hint="0.9 prunes 90 % of the weights"
        )
    return sparsity


def prune_weight(
    weight: np.ndarray, sparsity: float | None, pattern: str | PrunePattern = "unstructured"
) -> np.ndarray:
    """A copy of the (m, k) weight with (at least) that share of zeros; at least one piece is kept.

    Pieces are ranked by mean square; those at the lower and right edge may be smaller than a block. Raises UsageError
    for a bad pattern or sparsity, or for a block or group that is larger than the matrix.
    """
    pattern = parse_pattern(pattern) if isinstance(pattern, str) else pattern
    sparsity = check_sparsity(sparsity, pattern)
    m, k = weight.shape
    if not fits(pattern, m, k):
        raise UsageError(f"pattern {pattern} does not fit a {m} x {k} weight", hint="choose a smaller block or group")
    if pattern.kind == "n:m":
        keep = _keep_n_of_m(weight, *pattern.size)
    else:
        rows, columns = {"rows": (1, k), "columns": (m, 1)}.get(pattern.kind, pattern.size)
        keep = _keep_blocks(weight, rows, columns, sparsity)
    return np.where(keep, weight, np.zeros((), weight.dtype))


def fits(pattern: PrunePattern, m: int, k: int) -> bool:
    """True when a weight of that shape is at least as large as a block or group of the pattern."""
    r, c = (1, pattern.size[1]) if pattern.kind == "n:m" else pattern.size
    return m >= r and k >= c


def _keep_blocks(weight: np.ndarray, r: int, c: int, sparsity: float) -> np.ndarray:
    m, k = weight.shape
    row_starts, column_starts = np.arange(0, m, r), np.arange(0, k, c)
    heights, widths = np.diff(np.append(row_starts, m)), np.diff(np.append(column_starts, k))
    squares = np.square(weight, dtype=np.float64)
    sums = np.add.reduceat(np.add.reduceat(squares, row_starts, axis=0), column_starts, axis=1)
    scores = sums / np.outer(heights, widths)
    drop = min(round(sparsity * scores.size), scores.size - 1)
    keep = np.ones(scores.size, bool)
    keep[np.argpartition(scores.ravel(), drop)[:drop]] = False
    return keep.reshape(scores.shape).repeat(heights, axis=0).repeat(widths, axis=1)


def _keep_n_of_m(weight: np.ndarray, n: int, m: int) -> np.ndarray:
    """Along K the n largest of every m; a group cut off at the end keeps n as well."""
    rows, k = weight.shape
    padded = np.full((rows, -(-k // m) * m), -1.0)
    padded[:, :k] = np.abs(weight)
    groups = padded.reshape(rows, -1, m)
    keep = np.zeros(groups.shape, bool)
    np.put_along_axis(keep, np.argpartition(groups, m - n, axis=2)[:, :, m - n :], True, axis=2)
    return keep.reshape(rows, -1)[:, :k]
