"""Images resized by linear interpolation, or by picking the nearest pixel.

    for plane, row of Y:                 # the two rows of X that it lies between: a table
        their mix, in scratch memory
        for vector of Y:  the pixels left and right of each lane, by a shuffle of two vectors; their mix

Columns are known when the kernel is built, so each shuffle is one instruction with constant lanes.

Requires: X and Y plain or in Planes with phases (1, 1); 16 (8) neighbouring pixels of Y lie between 32 (16) of X.
"""

from __future__ import annotations

import numpy as np
from sparsetvm.schedules.x86 import tir
from sparsetvm.schedules.x86.remainder.images import Images
from tvm import tirx
from tvm.tirx.script import builder as B

from sparsetvm.core.layout import AnyLayout, Planes
from sparsetvm.core.resampling import Resampling
from sparsetvm.core.target import Target


def resize_tables(rows: Resampling, columns: Resampling, target: Target) -> tuple[np.ndarray, ...]:
    """Upper and lower row (int32), weight of the lower row, weight of the right column (whole vectors), float32."""
    upper, lower, weight = rows.neighbours()
    right = columns.neighbours()[2]
    padded = np.pad(right, (0, -right.size % target.lanes))
    return upper.astype(np.int32), lower.astype(np.int32), weight.astype(np.float32), padded.astype(np.float32)


def resize_kernel(
    source: AnyLayout,
    out: AnyLayout,
    shape: tuple[int, ...],
    rows: Resampling,
    columns: Resampling,
    target: Target,
    symbol: str,
) -> tir.Expr:
    """PrimFunc (X, upper, lower, weights of rows, weights of columns, Y); `shape` is that of X, tables as above."""
    lanes, width = target.lanes, columns.size_in
    result = (*shape[:2], rows.size_out, columns.size_out)
    before, after = Images(source, shape, lanes), Images(out, result, lanes)
    first, second, _ = columns.neighbours()
    linear = columns.mode == "linear"
    with tir.prim_func(symbol) as builder:
        x, upper, lower, below, right, y = tir.flat_args(
            X=source.physical_shape(shape),
            upper=(rows.size_out, "int32"),
            lower=(rows.size_out, "int32"),
            below=(rows.size_out,),
            right=(-(-columns.size_out // lanes) * lanes,),
            Y=out.physical_shape(result),
        )
        with tir.outer(before.planes, target.threads) as plane:
            mixed = tir.scratch(-(-width // lanes) * lanes)
            if isinstance(out, Planes):
                after.zero_borders(y, plane)
            with B.serial(rows.size_out) as row:
                above = tir.let(before.row(plane, upper[row]))
                if linear:
                    under, weight = tir.let(before.row(plane, lower[row])), tir.let(tir.splat(below[row], lanes))
                    for at in range(0, width, lanes):
                        a, b = (tir.let(before.load(x, start, at)) for start in (above, under))
                        tir.vstore(mixed, a + (b - a) * weight, at, lanes)
                start = after.row(plane, row)
                for at in range(0, after.row_stride, lanes):
                    if at >= columns.size_out:
                        after.store(y, start, at, tir.splat(0.0, lanes))
                        continue
                    base = int(first[at])
                    pair = [
                        tir.let(
                            tir.vload_lanes(mixed, tir.i32(begin), lanes, 0, -(-width // lanes) * lanes - begin)
                            if linear
                            else before.load(x, above, begin)
                        )
                        for begin in (base, base + lanes)
                    ]
                    left = tir.let(tirx.Shuffle(pair, _lanes(first, at, base, lanes)))
                    if linear:
                        other = tir.let(tirx.Shuffle(pair, _lanes(second, at, base, lanes)))
                        left = tir.let(left + (other - left) * tir.vload(right, at, lanes))
                    after.store(y, start, at, left)
    return builder.get()


def _lanes(index: np.ndarray, at: int, base: int, lanes: int) -> list[int]:
    """Lanes of the pair of vectors from `base` on that hold the pixels `index[at:]`; the last one repeats."""
    chosen = [int(i) - base for i in index[at : at + lanes]]
    return chosen + chosen[-1:] * (lanes - len(chosen))
