"""Slices of a batch behind each other in one tensor.

    for slice: Y[slice * size :] = X_slice

Requires: a layout whose outermost dimension is the batch.
"""

from __future__ import annotations

import math

from sparsetvm.schedules.x86 import tir
from sparsetvm.schedules.x86.remainder.runs import parallel_run

from sparsetvm.core.target import Target


def gather_kernel(shape: tuple[int, ...], count: int, target: Target, symbol: str) -> tir.Expr:
    """PrimFunc (X0, X1, ..., Y): `count` slices of `shape`, and Y with `count` times as many in dimension 0."""
    size, lanes = math.prod(shape), target.lanes
    with tir.prim_func(symbol) as builder:
        slices = {f"X{at}": shape for at in range(count)}
        *xs, y = tir.flat_args(**slices, Y=(count * shape[0], *shape[1:]))
        for number, x in enumerate(xs):

            def copy(at: tir.Expr, end: int, x: tir.Buffer = x, start: int = number * size) -> None:
                tir.vstore_lanes(y, tir.vload_lanes(x, at, lanes, 0, end), start + at, lanes, 0, end)

            parallel_run(size, lanes, target.threads, copy)
    return builder.get()
