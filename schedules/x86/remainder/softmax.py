"""Softmax over the last axis of a plain [rows, n] matrix: lanes run along the row.

for each row: maximum; exp(x - maximum) stored and summed; scaled by 1 / sum
"""

from __future__ import annotations

import math

from sparsetvm.schedules.x86 import tir
from sparsetvm.schedules.x86.remainder.runs import add, each_vector, reduce_run

from sparsetvm.core.target import Target


def softmax_kernel(shape: tuple[int, ...], target: Target, symbol: str) -> tir.Expr:
    """PrimFunc (X, Y), both plain of the given shape; any length of the last axis.

    Terms below exp(-87) of the largest count as exp(-87), 1.6e-38. A row with a NaN becomes NaN.
    """
    lanes, n = target.lanes, shape[-1]
    with tir.prim_func(symbol) as builder:
        x, y = tir.flat_args(X=shape, Y=shape)
        with tir.outer(math.prod(shape[:-1]), target.threads) as row:
            _softmax_row(x, y, row * n, n, lanes)
    return builder.get()


def _softmax_row(x: tir.Buffer, y: tir.Buffer, start: tir.Expr, n: int, lanes: int) -> None:
    def load(offset: tir.Expr, end: int) -> tir.Expr:
        return tir.vload_lanes(x, start + offset, lanes, 0, end, -math.inf)

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
