"""Softmax over the last axis of a plain [rows, n] matrix: lanes run along the row.

for each row: maximum of scaled and masked values; exp(value - maximum) stored and summed; scaled by 1 / sum
"""

from __future__ import annotations

import math

from sparsetvm.schedules.operators import Softmax
from sparsetvm.schedules.x86 import tir
from sparsetvm.schedules.x86.remainder.runs import add, each_vector, reduce_run

from sparsetvm.core.target import Target

__all__ = ["Softmax", "softmax_kernel", "softmax_supported"]


def softmax_supported(softmax: Softmax) -> bool:
    """True: all of them are."""
    return True


def softmax_kernel(softmax: Softmax, target: Target, symbol: str) -> tir.Expr:
    """PrimFunc (X, [mask], Y), X and Y plain of the given shape; any length of the last axis.

    Terms below exp(-87) of the largest count as exp(-87), 1.6e-38. A row with a NaN becomes NaN.
    """
    shape = softmax.shape
    with tir.prim_func(symbol) as builder:
        if softmax.mask_shape is None:
            x, y = tir.flat_args(X=shape, Y=shape)
            mask = None
        else:
            x, mask, y = tir.flat_args(X=shape, M=softmax.mask_shape, Y=shape)
        with tir.outer(math.prod(shape[:-1]), target.threads) as row:
            _softmax_row(softmax, x, mask, y, row, target.lanes)
    return builder.get()


def _softmax_row(
    softmax: Softmax, x: tir.Buffer, mask: tir.Buffer | None, y: tir.Buffer, row: tir.Expr, lanes: int
) -> None:
    n = softmax.shape[-1]
    start = row * n
    added = tir.let(softmax.mask_offset(row)) if mask is not None else None

    def load(offset: tir.Expr, end: int) -> tir.Expr:
        value = tir.vload_lanes(x, start + offset, lanes, 0, end, -math.inf)
        if softmax.scale != 1.0:
            value = value * tir.splat(softmax.scale, lanes)
        if mask is not None:
            value = value + tir.vload_lanes(mask, added + offset, lanes, 0, end)
        return value

    def term(offset: tir.Expr, end: int) -> tir.Expr:
        # Lanes past the end must not add exp(-87): they are dropped, not computed.
        value = tir.exp_vec(tir.let(load(offset, end) - largest), lanes, upper=False)
        tir.vstore_lanes(y, value, start + offset, lanes, 0, end)
        return tir.keep_lanes(value, lanes, end)

    def scale(offset: tir.Expr, end: int) -> None:
        value = tir.vload_lanes(y, start + offset, lanes, 0, end) * inverse
        tir.vstore_lanes(y, value, start + offset, lanes, 0, end)

    largest = tir.reduce_lanes(reduce_run(n, lanes, load, tir.vmax, -math.inf), lanes, tir.vmax)
    total = tir.reduce_lanes(reduce_run(n, lanes, term, add, 0.0), lanes, add)
    inverse = tir.reciprocal(total, lanes)
    each_vector(n, lanes, scale)
