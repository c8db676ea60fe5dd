"""A weight matrix by columns, for kernels that read only the columns of non-zero activations.

Threads share the rows, so each part (a range of rows) has its own columns. A column is a list of entries: a row and its
weight, or `height` neighbouring rows and their weights. Entries come in blocks of `size`, the last block of a column
padded with zeros for SPARE entries' rows behind the part's own, so that nothing that is read ever gets a product of
padding. They are many because sums that are added to in turn wait for each other.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

LANES = 16
MAX_ROWS = (1 << 16) - 16  # ids have 16 bits, 16 of them are spare
SPARE = 16
IDS_PER_WORD = 2


@dataclass(frozen=True)
class ColumnFormat:
    """Blocks of all parts behind each other.

    values: float32 [block][entry][row of the entry].
    ids: int32 [block][entry / 2], two 16-bit fields each, the first lowest: row in the part / height.
    first: int32 [part][first_stride], block in which a column begins; the entries behind column k repeat the end.
    bounds: (parts + 1,) int32, part p has the slices of 16 rows bounds[p] : bounds[p + 1].
    mean_blocks: of a column of one part. most_slices: of one part.
    """

    height: int
    size: int
    values: np.ndarray
    ids: np.ndarray
    first: np.ndarray
    first_stride: int
    bounds: np.ndarray
    mean_blocks: float
    most_slices: int

    @property
    def padding(self) -> float:
        """Stored values per non-zero."""
        return self.values.size / max(1, int(np.count_nonzero(self.values)))


def pack_columns(weight: np.ndarray, parts: int, *, height: int, size: int) -> ColumnFormat:
    """Format of `weight` (m, k), its slices of 16 rows dealt to `parts` threads by non-zeros.

    `height` divides 16, `size` is even. Raises ValueError for more than MAX_ROWS rows of an entry.
    """
    m, k = weight.shape
    if m > MAX_ROWS * height:
        raise ValueError(f"{m} rows do not fit into 16-bit ids of {height} rows")
    slices = -(-m // LANES)
    padded = np.zeros((slices * LANES, k), np.float32)
    padded[:m] = weight
    bounds = deal_slices(np.count_nonzero(padded.reshape(slices, LANES * k), axis=1), parts)
    stride = -(-k // LANES) * LANES + LANES
    values, ids, first = [], [], np.zeros((parts, stride), np.int32)
    blocks = 0
    for part, (begin, end) in enumerate(itertools.pairwise(bounds)):
        of_part = padded[begin * LANES : end * LANES]
        part_values, part_ids, per_column = _part(of_part, height, size)
        values.append(part_values)
        ids.append(part_ids)
        first[part, 1 : k + 1] = np.cumsum(per_column)
        first[part, k + 1 :] = first[part, k]
        first[part] += blocks
        blocks += len(part_ids)
    return ColumnFormat(
        height, size, np.concatenate(values).ravel(), _words(np.concatenate(ids)), first.ravel(), stride,
        bounds, blocks / (parts * k), int(np.diff(bounds).max()),
    )  # fmt: skip


def _part(weight: np.ndarray, height: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(values [block][size][height], ids [block][size], blocks of each column) of one part's rows."""
    rows, k = weight.shape
    entries = weight.reshape(rows // height, height, k)
    column, row = np.nonzero((entries != 0).any(axis=1).T)
    lengths = np.bincount(column, minlength=k)
    per_column = -(-lengths // size)
    begin = np.concatenate([[0], np.cumsum(per_column)])
    within = np.arange(column.size) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    at = begin[column] * size + within
    values = np.zeros((begin[-1] * size, height), np.float32)
    values[at] = entries[row, :, column]
    ids = (rows // height + np.arange(begin[-1] * size) % SPARE).astype(np.uint16)
    ids[at] = row
    return values, ids.reshape(-1, size), per_column


def _words(ids: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(ids).view("<i4").ravel()


def deal_slices(weights: np.ndarray, parts: int) -> np.ndarray:
    """(parts + 1,) int32: contiguous ranges of slices of about equal cost: their non-zeros, and a little for each."""
    total = np.cumsum(weights + 4)
    shares = np.arange(1, parts) * (total[-1] / parts)
    inner = np.searchsorted(total - (weights + 4) / 2, shares)
    return np.concatenate([[0], inner, [len(weights)]]).astype(np.int32)
