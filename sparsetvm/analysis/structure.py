"""What structure a pruned weight has, also where `patterns.summarize` cannot see it: shifted, permuted, with strays.

`summarize` says what kernels are chosen by; this says what a person would want to know about the pruning. A structure
is named only when its odds against a random mask, over all hypotheses tried, are a million to one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from sparsetvm.analysis.axis_blocks import AxisBlocks, aligned_blocks
from sparsetvm.analysis.chance import SURPRISE, log10_choices, too_few
from sparsetvm.analysis.equal_lines import hidden_blocks
from sparsetvm.analysis.group_counts import n_of_m
from sparsetvm.analysis.lines import Lines, lines_of
from sparsetvm.analysis.patterns import DENSE_BELOW
from sparsetvm.analysis.per_pattern import per_pattern

_FULL = 0.95  # share of non-zeros in the kept part; pruned weights may hold zeros by accident
_INSIDE = 0.90  # share of the non-zeros that must lie in the kept part; the others are strays
_WELL_FILLED = 0.5  # more than this share of a block's elements are non-zero
_HARDLY_LIVE = 0.05  # a line with a smaller share of the mean line's non-zeros holds strays only

StructureKind = Literal["dense", "unstructured", "block", "n:m", "rows", "columns", "mixed"]


@dataclass(frozen=True)
class Structure:
    """Structure of an (m, k) weight; m is output features (rows), k the reduction (columns).

    kind: "block": r x c blocks are full or empty; "mixed": the same but for strays; "n:m": at most n of every m
        neighbours along `axis`; "rows", "columns": whole ones are empty and the rest is full; "unstructured"; "dense".
    block: (r, c), each up to 64; (1, 1) without blocks.
    n_m: (n, m) or None. axis: "input" (along k) or "output" (along m), None without N:M.
    offset: (row, column), 0 <= row < r, 0 <= column < c, at which a block begins; those cut off by the matrix's edges
        are smaller.
    row_permutation, column_permutation: (m,), (k,) int64 or None; the blocks show in weight[row_permutation][:,
        column_permutation], where empty rows and columns may take the place of any row or column of a block.
    strays: non-zeros outside the blocks or the whole rows and columns.
    dead_rows, dead_columns: rows and columns without a non-zero.
    nnz: non-zeros.
    """

    kind: StructureKind
    nnz: int
    dead_rows: int
    dead_columns: int
    block: tuple[int, int] = (1, 1)
    n_m: tuple[int, int] | None = None
    axis: Literal["input", "output"] | None = None
    offset: tuple[int, int] = (0, 0)
    row_permutation: np.ndarray | None = None
    column_permutation: np.ndarray | None = None
    strays: int = 0

    def explain(self) -> str:
        """One sentence without a full stop, such as "hidden 4x1 blocks: rows are permuted"."""
        text = {"dense": "dense", "unstructured": "no structure", "rows": "whole rows", "columns": "whole columns"}
        if self.n_m:
            said = f"{self.n_m[0]}:{self.n_m[1]} along the {self.axis} axis"
        elif self.block != (1, 1):
            said = self._explain_blocks()
        else:
            said = text[self.kind]
        if self.strays:
            said += f", plus {100 * self.strays / self.nnz:.2g} % strays"
        lost = [f"{n} empty {what}" for n, what in ((self.dead_rows, "rows"), (self.dead_columns, "columns")) if n]
        return said + (f", {' and '.join(lost)}" if lost else "")

    def _explain_blocks(self) -> str:
        said = f"{self.block[0]}x{self.block[1]} blocks"
        orders = (("rows", self.row_permutation), ("columns", self.column_permutation))
        moved = [what for what, order in orders if order is not None]
        if moved:
            return f"hidden {said}: {' and '.join(moved)} are permuted"
        return said + (f" at offset {self.offset}" if self.offset != (0, 0) else "")


@per_pattern
def find_structure(weight: np.ndarray) -> Structure:
    """Structure of an (m, k) weight. On one core about 0.1 s for 1024 x 1024 and 1 to 3 s for 4096 x 4096.

    Whole rows and columns go before blocks, blocks before N:M, and what needs no permutation before what needs one. Of
    the block sizes that hold everywhere the largest is named.
    """
    mask = weight != 0
    per_row, per_column = np.count_nonzero(mask, axis=1), np.count_nonzero(mask, axis=0)
    nnz = int(per_row.sum())
    dead = int(np.count_nonzero(per_row == 0)), int(np.count_nonzero(per_column == 0))
    if mask.size - nnz < DENSE_BELOW * mask.size:
        return Structure("dense", nnz, *dead)
    if nnz == 0:
        return Structure("rows", nnz, *dead)
    whole = _whole_lines(mask, per_row, per_column, nnz)
    if whole:
        return Structure(whole[0], nnz, *dead, strays=whole[1])
    found = _blocks(mask, per_row, per_column, nnz)
    if found:
        rows, columns, strays = found
        return Structure(
            "mixed" if strays else "block",
            nnz,
            *dead,
            block=(rows.size if rows else 1, columns.size if columns else 1),
            offset=(rows.offset if rows else 0, columns.offset if columns else 0),
            row_permutation=rows.order if rows else None,
            column_permutation=columns.order if columns else None,
            strays=strays,
        )
    for axis, lines in (("input", mask), ("output", np.ascontiguousarray(mask.T))):
        group = n_of_m(lines)
        if group:
            return Structure("n:m", nnz, *dead, n_m=group, axis=axis)  # type: ignore[arg-type]
    return Structure("unstructured", nnz, *dead)


def _whole_lines(
    mask: np.ndarray, per_row: np.ndarray, per_column: np.ndarray, nnz: int
) -> tuple[Literal["rows", "columns"], int] | None:
    """("rows" or "columns", strays) when the fuller rows and columns are full; the one that explains more zeros."""
    rows, columns = (counts > counts.max() / 2 for counts in (per_row, per_column))
    live = int(rows.sum()), int(columns.sum())
    area = live[0] * live[1]
    inside = int(np.count_nonzero(mask[rows][:, columns]))
    if inside < _FULL * area or inside < _INSIDE * nnz:
        return None
    # A non-zero of each row and column is what makes it a live one.
    odds = too_few(area - sum(live), area - inside, 1.0 - nnz / mask.size)
    tried = log10_choices(rows.size, live[0]) + log10_choices(columns.size, live[1])
    if odds - tried < SURPRISE:
        return None
    return ("rows" if live[0] * columns.size <= live[1] * rows.size else "columns"), nnz - inside


def _blocks(
    mask: np.ndarray, per_row: np.ndarray, per_column: np.ndarray, nnz: int
) -> tuple[AxisBlocks | None, AxisBlocks | None, int] | None:
    """(blocks of rows, blocks of columns, strays); an axis is None where single lines are kept."""
    every = np.flatnonzero(per_row), np.flatnonzero(per_column)
    found = _blocks_among(mask, *every, nnz)
    fuller = _live(per_row), _live(per_column)
    # Lines with strays only are as good as dead, yet a thin line may be a part of a block at the edge.
    if (found is None or found[2]) and (fuller[0].size, fuller[1].size) != (every[0].size, every[1].size):
        second = _blocks_among(mask, *fuller, nnz)
        return max(filter(None, (found, second)), key=_worth, default=None)
    return found


def _worth(found: tuple[AxisBlocks | None, AxisBlocks | None, int]) -> tuple[int, int]:
    rows, columns, strays = found
    return (rows.size if rows else 1) * (columns.size if columns else 1), -strays


def _blocks_among(
    mask: np.ndarray, live_rows: np.ndarray, live_columns: np.ndarray, nnz: int
) -> tuple[AxisBlocks | None, AxisBlocks | None, int] | None:
    core = mask[live_rows][:, live_columns]
    rows = _axis(lines_of(core, live_rows, mask.shape[0]))
    columns = _axis(lines_of(np.ascontiguousarray(core.T), live_columns, mask.shape[1]))
    rows, columns = _surprising(rows, columns)
    if rows is None and columns is None:
        return None
    inside = _inside(core, rows, columns, nnz)
    return None if inside is None else (rows, columns, nnz - inside)


def _live(counts: np.ndarray) -> np.ndarray:
    mean = counts.sum() / np.count_nonzero(counts)
    return np.flatnonzero(counts > _HARDLY_LIVE * mean)


def _axis(lines: Lines) -> AxisBlocks | None:
    aligned = aligned_blocks(lines)
    if aligned and aligned.surplus(1) >= SURPRISE:
        return aligned
    return hidden_blocks(lines)


def _surprising(rows: AxisBlocks | None, columns: AxisBlocks | None) -> tuple[AxisBlocks | None, AxisBlocks | None]:
    """What is beyond chance of both, each given the other: in blocks of c columns only every c-th bit says anything."""
    if rows and columns:
        surplus = rows.surplus(columns.size), columns.surplus(rows.size)
        if min(surplus) >= SURPRISE:
            return rows, columns
        # Blocks that need dead lines are the likelier to be an echo of those of the other axis.
        better = (not rows.filled, surplus[0]) > (not columns.filled, surplus[1])
        rows, columns = (rows, None) if better else (None, columns)
    kept = rows or columns
    return (rows, columns) if kept and kept.surplus(1) >= SURPRISE else (None, None)


def _inside(core: np.ndarray, rows: AxisBlocks | None, columns: AxisBlocks | None, nnz: int) -> int | None:
    """Non-zeros in well filled blocks, None when they are too few or their blocks not full."""
    sums, heights = _gather(core, rows)
    sums, widths = _gather(sums.T, columns)
    areas = np.outer(widths, heights)
    kept = sums > _WELL_FILLED * areas
    inside = int(sums[kept].sum())
    return inside if inside >= _INSIDE * nnz and inside >= _FULL * int(areas[kept].sum()) else None


def _gather(array: np.ndarray, axis: AxisBlocks | None) -> tuple[np.ndarray, np.ndarray]:
    """(sums of the rows of each block, numbers of rows)."""
    if axis is None:
        return array, np.ones(array.shape[0], np.int64)
    order = np.argsort(axis.groups, kind="stable")
    starts = np.flatnonzero(np.diff(axis.groups[order], prepend=-1))
    sums = np.add.reduceat(array[order], starts, axis=0, dtype=np.uint16)
    return sums, np.diff(np.append(starts, order.size))
