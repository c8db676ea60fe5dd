"""Images resized by linear interpolation, or by picking the nearest pixel.

    thread: one or four neighbouring floats of Y: the pixels that they lie between, and their weights, from tables

Requires: X and Y plain or in Planes with phases (1, 1).
"""

from __future__ import annotations

import numpy as np
from sparsetvm.schedules.cuda.launch import Launch
from sparsetvm.schedules.cuda.remainder.images import images_of

from sparsetvm.core.layout import AnyLayout
from sparsetvm.core.resampling import Resampling
from sparsetvm.core.target import Target

_THREADS = 128


def resize_tables(rows: Resampling, columns: Resampling, target: Target) -> tuple[np.ndarray, ...]:
    """For rows, then for columns of Y: the two of X that each lies between (size_out, 2) int32, the second's weight."""
    return (*_table(rows), *_table(columns))


def _table(axis: Resampling) -> tuple[np.ndarray, np.ndarray]:
    first, second, weight = axis.neighbours()
    return np.stack([first, second], 1).astype(np.int32), weight.astype(np.float32)


def resize_kernel(
    source: AnyLayout,
    out: AnyLayout,
    shape: tuple[int, ...],
    rows: Resampling,
    columns: Resampling,
    target: Target,
    symbol: str,
) -> Launch:
    """Launch (X, rows, weights, columns, weights, Y); `shape` is that of X, the tables are those of `resize_tables`."""
    x, y = images_of(source, shape), images_of(out, (*shape[:2], rows.size_out, columns.size_out))
    floats = 4 if y.plane_stride % 4 == 0 and y.origin % 4 == 0 else 1
    count = y.planes * y.plane_stride
    scalars = (
        *(count, x.plane_stride, x.origin, x.row_stride),
        *(y.plane_stride, y.origin, y.row_stride, y.height, y.width),
    )
    return Launch(
        "resize.cu",
        "resize",
        (("SP_LINEAR", int(columns.mode == "linear")), ("SP_FLOATS", floats)),
        (-(-count // (floats * _THREADS)), 1, 1),
        _THREADS,
        scalars=scalars,
        overlaps=True,
    )
