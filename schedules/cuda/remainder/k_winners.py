"""The k largest values of each row; all others become zero (k_winners.cu).

for each row, by a block: four times: count the keys that begin like the k-th largest by their next byte
                          y = x where key >= k-th largest
"""

from __future__ import annotations

import math
from typing import Literal

from sparsetvm.schedules.cuda.launch import Launch

from sparsetvm.core.target import Target

_MOST_THREADS = 1024
_EACH = 4  # values of a thread, before blocks become larger
_KEPT = 16  # values of a thread in registers


def k_winners_kernel(
    shape: tuple[int, ...], k: int, ties: Literal["first", "all"], target: Target, symbol: str
) -> Launch:
    """Launch (X, Y), both plain of the given shape; rows are along the last axis and longer than k - 1.

    ties: of values equal to the k-th, "first" keeps those with the lowest index until there are k, "all" keeps all.
    """
    n = shape[-1]
    threads = min(_MOST_THREADS, 32 * math.ceil(n / (32 * _EACH)))
    each = math.ceil(n / threads)
    defines = (
        *(("SP_THREADS", threads), ("SP_KEEP", each if each <= _KEPT else 0)),
        ("SP_FIRST", int(ties == "first")),
    )
    rows = math.prod(shape[:-1])
    return Launch("k_winners.cu", "k_winners", defines, (rows, 1, 1), threads, scalars=(n, k), overlaps=True)
