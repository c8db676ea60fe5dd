"""Softmax over the last axis of a plain [rows, n] matrix: threads run along the row.

for each row: maximum; exp(x - maximum) summed; scaled by 1 / sum
"""

from __future__ import annotations

from sparsetvm.schedules.cuda.launch import Launch
from sparsetvm.schedules.cuda.remainder.rows import share_rows

from sparsetvm.core.layout import PLAIN
from sparsetvm.core.target import Target


def softmax_kernel(shape: tuple[int, ...], target: Target, symbol: str) -> Launch:
    """Launch (X, Y), both plain of the given shape; any length of the last axis. A row with a NaN becomes NaN."""
    rows = share_rows(PLAIN, shape, target)
    return Launch(
        "rows.cu", "softmax", rows.defines, (rows.blocks, 1, 1), rows.block, scalars=rows.scalars, overlaps=True
    )
