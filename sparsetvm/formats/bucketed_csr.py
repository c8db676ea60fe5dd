"""K-blocked CSR whose rows are sorted by length: the pattern-in-data format of SpMM and sparse convolution.

Inside a K block all rows with the same number of non-zeros form a run: the inner loop then has the same trip count for
many rows, so its exit is predicted (unsorted rows cost one misprediction each). Row order is free because accumulators
pass through Y between K blocks.

For patterns of blocks a "row" may be a strip of several neighbouring rows, and an entry a column in which any of them
has a weight (block CSR with blocks of strip x 1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class BucketedCsr:
    """runs[i] = (first entry of rows, how many, first entry, length); blocks[b] : blocks[b + 1] are b's runs.

    rows: the (first) rows of each run's strips. offsets: float offset of each entry's column in X. values: the weights
    of each entry, as many as a strip has rows.
    """

    runs: np.ndarray
    blocks: np.ndarray
    rows: np.ndarray
    offsets: np.ndarray
    values: np.ndarray

    def arrays(self) -> tuple[np.ndarray, ...]:
        """The arrays in kernel argument order, all 1-D; empty ones get one unread element."""
        flat = (self.runs.ravel(), self.blocks, self.rows, self.offsets, self.values)
        return tuple(a if a.size else np.zeros(1, a.dtype) for a in flat)


def pack_bucketed_csr(
    weight: np.ndarray, taps: tuple[np.ndarray, ...], rows_per_group: int, k_block: int, strip: int = 1
) -> BucketedCsr:
    """Format of `weight` (m, k) in strips of `strip` rows, which divide m and `rows_per_group`.

    Row r reads column c at float offset taps[r // rows_per_group][c]. Every row is in the first and in the last block,
    also when it has no non-zero there: the first block writes the bias, the last one applies the epilogue.
    """
    m, k = weight.shape
    weight = weight.reshape(m // strip, strip, k)
    used = (weight != 0).any(1)
    starts = list(range(0, k, k_block))
    all_taps = np.stack(taps)[np.arange(0, m, strip) // rows_per_group] if len(taps) > 1 else None
    runs: list[tuple[int, int, int, int]] = []
    blocks, row_lists, offsets, values = [0], [], [], []
    rows_done = nnz_done = 0
    for k0 in starts:
        block = used[:, k0 : k0 + k_block]
        lengths = np.count_nonzero(block, axis=1)
        keep = np.flatnonzero((lengths > 0) | (k0 == 0) | (k0 == starts[-1]))
        order = keep[np.argsort(-lengths[keep], kind="stable")]
        at_row, at_col = np.nonzero(block[order])
        rows = order[at_row]
        values.append(weight[rows, :, at_col + k0].ravel())
        offsets.append(taps[0][at_col + k0] if all_taps is None else all_taps[rows, at_col + k0])
        row_lists.append(order * strip)
        for length in sorted(set(lengths[order].tolist()), reverse=True):
            count = int(np.count_nonzero(lengths[order] == length))
            runs.append((rows_done, count, nnz_done, length))
            rows_done += count
            nnz_done += count * length
        blocks.append(len(runs))
    return BucketedCsr(
        np.array(runs, np.int32).reshape(-1, 4),
        np.array(blocks, np.int32),
        np.concatenate(row_lists).astype(np.int32),
        np.concatenate(offsets).astype(np.int32),
        np.concatenate(values).astype(np.float32),
    )
