"""One-shot magnitude pruning of one weight matrix: the smallest weights, blocks, rows or columns become zero."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sparsetvm.errors import UsageError

_EXAMPLES = (
    "unstructured, block:4x1, n:m:2:4, n:m:2:4:output, complementary:20, rows (or filters), columns or channels; "
    "with a sparsity of its own as in block:4x1@0.9"
)
_WHOLE = {"rows": "rows", "filters": "rows", "columns": "columns", "channels": "channels"}


@dataclass(frozen=True)
class PrunePattern:
    """What to prune. size: (r, c) of "block", (n, m) of "n:m", (1, 1) otherwise. axis: along which N:M groups lie.

    "columns" are single columns of the (m, k) weight, "channels" whole input channels: all of a convolution's taps.
    """

    kind: Literal["unstructured", "block", "n:m", "rows", "columns", "channels"]
    size: tuple[int, int] = (1, 1)
    axis: Literal["input", "output"] = "input"

    def __str__(self) -> str:
        if self.kind == "block":
            return f"block:{self.size[0]}x{self.size[1]}"
        if self.kind == "n:m":
            return f"n:m:{self.size[0]}:{self.size[1]}" + (":output" if self.axis == "output" else "")
        return self.kind


def parse_goal(text: str, sparsity: float | None = None) -> tuple[PrunePattern, float]:
    """The pattern and the sparsity of "PATTERN" or "PATTERN@SPARSITY"; what stands there goes before `sparsity`.

    Raises UsageError.
    """
    name, at, own = text.partition("@")
    pattern = parse_pattern(name)
    if not at:
        return pattern, check_sparsity(sparsity, pattern)
    try:
        return pattern, check_sparsity(float(own), pattern)
    except ValueError:
        raise UsageError(
            f"'{own}' in '{text}' is no sparsity", hint=f"{pattern}@0.9 prunes 90 % of the weights"
        ) from None


def parse_pattern(text: str) -> PrunePattern:
    """Parse "unstructured", "block:RxC", "n:m:N:M", "n:m:N:M:output", "complementary:N", "rows" (or "filters"),
    "columns" or "channels".

    "complementary:N" is another name of "n:m:1:N:output": no two of N neighbouring filters use the same column, so
    that the N of them overlay to one dense filter (Hunter, Spracklen and Ahmad, "Two Sparsities Are Better Than One").
    Raises UsageError for anything else.
    """
    if text == "unstructured":
        return PrunePattern("unstructured")
    if text in _WHOLE:
        return PrunePattern(_WHOLE[text])  # type: ignore[arg-type]
    block = re.fullmatch(r"block:([1-9]\d{0,3})x([1-9]\d{0,3})", text)
    if block:
        return PrunePattern("block", (int(block[1]), int(block[2])))
    group = re.fullmatch(r"n:m:(\d{1,4}):(\d{1,4})(?::(input|output))?", text)
    if group and 1 <= int(group[1]) < int(group[2]):
        return PrunePattern("n:m", (int(group[1]), int(group[2])), group[3] or "input")  # type: ignore[arg-type]
    overlaid = re.fullmatch(r"complementary:(\d{1,4})", text)
    if overlaid and int(overlaid[1]) > 1:
        return PrunePattern("n:m", (1, int(overlaid[1])), "output")
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
    weight: np.ndarray, sparsity: float | None, pattern: str | PrunePattern = "unstructured", taps: int = 1
) -> np.ndarray:
    """A copy of the (m, k) weight with (at least) that share of zeros; at least one piece is kept.

    Pieces are ranked by mean square; those at the lower and right edge may be smaller than a block. taps: columns of
    one input channel. Raises UsageError for a bad pattern or sparsity, or for a block or group that is larger than the
    matrix.
    """
    return np.where(kept_by(weight, sparsity, pattern, taps), weight, np.zeros((), weight.dtype))


def kept_by(
    weight: np.ndarray, sparsity: float | None, pattern: str | PrunePattern = "unstructured", taps: int = 1
) -> np.ndarray:
    """(m, k) bool: the weights that `prune_weight` keeps, zeros among them where it keeps zeros."""
    pattern = parse_pattern(pattern) if isinstance(pattern, str) else pattern
    sparsity = check_sparsity(sparsity, pattern)
    m, k = weight.shape
    if not fits(pattern, m, k):
        raise UsageError(f"pattern {pattern} does not fit a {m} x {k} weight", hint="choose a smaller block or group")
    if pattern.kind == "n:m":
        along = weight if pattern.axis == "input" else weight.T
        kept = _keep_n_of_m(along, *pattern.size)
        return kept if pattern.axis == "input" else np.ascontiguousarray(kept.T)
    whole = {"rows": (1, k), "columns": (m, 1), "channels": (m, taps)}
    return _keep_blocks(weight, *whole.get(pattern.kind, pattern.size), sparsity)


def fits(pattern: PrunePattern, m: int, k: int) -> bool:
    """True when a weight of that shape is at least as large as a block or group of the pattern."""
    r, c = (1, pattern.size[1]) if pattern.kind == "n:m" else pattern.size
    return (m >= c and k >= r) if pattern.axis == "output" else (m >= r and k >= c)


@dataclass(frozen=True)
class Cost:
    """What pruning takes from weights. l1, l2: sum of magnitudes and of squares before; the rest: of what was removed.

    least_l1, least_l2: of the smallest weights, as many as were removed: what unstructured pruning would take.
    """

    l1: float = 0.0
    l2: float = 0.0
    removed_l1: float = 0.0
    removed_l2: float = 0.0
    least_l1: float = 0.0
    least_l2: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    def shares(self) -> dict[str, float]:
        """Share of the L1 and of the L2 norm that was removed, and that unstructured pruning would have."""
        l1, l2 = self.l1 or 1.0, self.l2 or 1.0
        return {
            "l1_removed": self.removed_l1 / l1,
            "l2_removed": math.sqrt(self.removed_l2 / l2),
            "l1_removed_unstructured": self.least_l1 / l1,
            "l2_removed_unstructured": math.sqrt(self.least_l2 / l2),
        }


def cost_of(before: np.ndarray, after: np.ndarray) -> Cost:
    """Cost of pruning one weight; zeros of `before` cost nothing."""
    size = np.abs(before.ravel()).astype(np.float64)
    gone = size[(after.ravel() == 0) & (size > 0)]
    smallest = np.partition(size[size > 0], gone.size - 1)[: gone.size] if gone.size else gone
    sums = [(float(part.sum()), float(np.square(part).sum())) for part in (size, gone, smallest)]
    return Cost(*sums[0], *sums[1], *sums[2])


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
