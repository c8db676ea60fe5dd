"""Order of the rows of a sparse matrix in which groups of neighbours share columns.

A kernel that holds R rows in registers loads an activation once per group and column that any of the rows uses. Rows
that use the same columns in one group mean fewer loads: at 95 % sparsity and R = 28, 0.46 instead of 0.55 loads per
non-zero of a random pattern, less on real ones, whose rows differ in length. (Row clustering is a classic of sparse
formats; the greedy form here needs no hypergraph.)
"""

from __future__ import annotations

import numpy as np


def cluster_rows(mask: np.ndarray, group: int) -> np.ndarray:
    """(m,) permutation of the rows of `mask` (m, k) bool; groups are runs of `group` rows.

    Greedy: a group begins with the longest row that is left and takes the row that adds the fewest new columns, of
    equals the longest, until it is full. O(m * m * k / group) byte operations.
    """
    m, k = mask.shape
    by_column = np.ascontiguousarray(mask.T)
    lengths = mask.sum(1, dtype=np.int64)
    free = np.ones(m, bool)
    order = np.empty(m, np.int64)
    for at in range(m):
        if at % group == 0:
            covered = np.zeros(k, bool)
            shared = np.zeros(m, np.int64)
            row = int(np.where(free, lengths, -1).argmax())
        else:
            # One key: few new columns first, then many non-zeros.
            key = (lengths - shared) * (k + 1) - lengths
            row = int(np.where(free, key, np.iinfo(np.int64).max).argmin())
        order[at] = row
        free[row] = False
        new = np.flatnonzero(mask[row] & ~covered)
        covered[new] = True
        shared += by_column[new].sum(0, dtype=np.int64)
    return order
