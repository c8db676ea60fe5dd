"""Rows of a sparse matrix for lanes that walk them together: sorted by length, entries ordered to spare banks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

PER_LANE = 4  # entries that a lane takes in one step


@dataclass(frozen=True)
class LaneRows:
    """values float32 and columns (uint16, uint32 where they need it): [step][lane][4].

    Where a row has no more, values are zero and columns one of its own, so that no other X is multiplied.

    starts: (m + 1,) int32 first step of each row, in the order of `order`: (m,) int32 rows, longest first.
    """

    values: np.ndarray
    columns: np.ndarray
    starts: np.ndarray
    order: np.ndarray

    @property
    def most_steps(self) -> int:
        """Of the longest row."""
        return int(np.diff(self.starts).max())


def pack_lane_rows(weight: np.ndarray, lanes: int, classes: int, unit: int = 1) -> LaneRows:
    """Pack the (m, k) float32 `weight` for rows of `lanes` lanes; columns are stored as multiples of `unit`.

    Columns that are equal modulo `classes` lie in the same banks. Of each row the first column of every class comes
    first, then the second of every class and so on; lane l takes entries l, l + lanes, ... of a step. Rows that share a
    warp begin `lanes` classes apart.
    """
    m, k = weight.shape
    row, column = np.nonzero(weight)
    value = weight[row, column]
    counts = np.bincount(row, minlength=m)
    order = np.argsort(-counts, kind="stable")
    position = np.empty(m, np.int64)
    position[order] = np.arange(m)

    bank = (column - position[row] * lanes) % classes
    by_class = np.argsort(row * classes + bank, kind="stable")
    key = (row * classes + bank)[by_class]
    firsts = np.flatnonzero(np.diff(key, prepend=-1))
    turn = np.empty(row.size, np.int64)
    turn[by_class] = np.arange(row.size) - np.repeat(firsts, np.diff(firsts, append=row.size))
    turns = int(turn.max(initial=0)) + 1
    sequence = np.argsort((position[row] * turns + turn) * classes + bank, kind="stable")

    steps = -(-counts[order] // (lanes * PER_LANE))
    starts = np.concatenate([[0], np.cumsum(steps)])
    sorted_counts = counts[order]
    rank = np.arange(row.size) - np.repeat(np.cumsum(sorted_counts) - sorted_counts, sorted_counts)
    step, inside = rank // (lanes * PER_LANE), rank % (lanes * PER_LANE)
    at = ((np.repeat(starts[:-1], sorted_counts) + step) * lanes + inside % lanes) * PER_LANE + inside // lanes
    size = max(int(starts[-1]), 1) * lanes * PER_LANE
    values = np.zeros(size, np.float32)
    first = np.zeros(m, np.int64)
    first[row[::-1]] = column[::-1]  # of equal rows the last assignment stays
    columns = np.zeros(size, np.uint16 if k * unit <= 1 << 16 else np.uint32)
    columns[: int(starts[-1]) * lanes * PER_LANE] = np.repeat(first[order] * unit, steps * lanes * PER_LANE)
    values[at] = value[sequence]
    columns[at] = column[sequence] * unit
    return LaneRows(values, columns, starts.astype(np.int32), order.astype(np.int32))


def interleaved_halves(rows: LaneRows) -> np.ndarray | None:
    """uint16 [step][lane][4 float16 values, 4 columns]; None when a value is no float16 or columns need more bits."""
    if rows.columns.dtype != np.uint16:
        return None
    with np.errstate(over="ignore"):
        halves = rows.values.astype(np.float16)
    if not np.array_equal(halves, rows.values):
        return None
    parts = (halves.view(np.uint16).reshape(-1, PER_LANE), rows.columns.reshape(-1, PER_LANE))
    return np.concatenate(parts, axis=1).ravel()
