"""Sums, products and activations of whole tensors, on the physical buffers: the layout hardly matters.

Requires: all operands in one layout. Where the function would not keep the zero borders of Planes zero (a sigmoid), the
image is walked row by row and the borders are written anew.
"""

from __future__ import annotations

import math
from typing import Literal

from sparsetvm.schedules.x86 import tir
from sparsetvm.schedules.x86.remainder.images import Images
from sparsetvm.schedules.x86.remainder.runs import parallel_run
from tvm.tirx.script import builder as B

from sparsetvm.core.layout import AnyLayout, Planes
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Epilogue

_KEEP_ZERO = ("none", "relu", "gelu", "gelu_tanh", "silu", "hard_swish", "tanh")


def binary_kernel(
    op: Literal["add", "mul"],
    layout: AnyLayout,
    shape: tuple[int, ...],
    epilogue: Epilogue,
    target: Target,
    symbol: str,
) -> tir.Expr:
    """PrimFunc (X0, X1, Y): activation(X0 op X1); only the activation of `epilogue` is read."""
    return _elementwise(op, layout, shape, epilogue, target, symbol)


def unary_kernel(
    layout: AnyLayout, shape: tuple[int, ...], epilogue: Epilogue, target: Target, symbol: str
) -> tir.Expr:
    """PrimFunc (X, Y): activation(X); only the activation of `epilogue` is read ("tanh" is allowed as well)."""
    return _elementwise(None, layout, shape, epilogue, target, symbol)


def _elementwise(
    op: str | None, layout: AnyLayout, shape: tuple[int, ...], epilogue: Epilogue, target: Target, symbol: str
) -> tir.Expr:
    physical, lanes = layout.physical_shape(shape), target.lanes
    inputs = {"X": physical} if op is None else {"X0": physical, "X1": physical}
    with tir.prim_func(symbol) as builder:
        *xs, y = tir.flat_args(**inputs, Y=physical)

        def value(at: tir.Expr, end: int) -> tir.Expr:
            loaded = [tir.vload_lanes(x, at, lanes, 0, end) for x in xs]
            joined = loaded[0] if op is None else loaded[0] + loaded[1] if op == "add" else loaded[0] * loaded[1]
            return tir.activated(tir.let(joined), epilogue.activation, epilogue.low, epilogue.high, lanes)

        if isinstance(layout, Planes) and not _keeps_zero(epilogue):
            images = Images(layout, shape, lanes)
            with tir.outer(images.planes, target.threads) as plane:
                images.zero_borders(y, plane)
                with B.serial(images.height) as row:
                    start = images.row(plane, row)
                    for x in range(0, images.row_stride, lanes):
                        images.store(y, start, x, value(start + x, images.width - x))
        else:
            parallel_run(
                math.prod(physical),
                lanes,
                target.threads,
                lambda at, end: tir.vstore_lanes(y, value(at, end), at, lanes, 0, end),
            )
    return builder.get()


def scale_channels_kernel(layout: Planes, shape: tuple[int, ...], target: Target, symbol: str) -> tir.Expr:
    """PrimFunc (X, S, Y): Y[b, c] = X[b, c] * S[b, c], S plain (batch, channels, 1, 1): a gate of whole channels.

    Row by row, for the zeros around an image must stay zeros even when a factor is not finite.
    """
    images = Images(layout, shape, target.lanes)
    physical = layout.physical_shape(shape)
    with tir.prim_func(symbol) as builder:
        x, s, y = tir.flat_args(X=physical, S=(*shape[:2], 1, 1), Y=physical)
        with tir.outer(images.planes, target.threads) as plane:
            factor = tir.let(tir.splat(s[plane], target.lanes))
            images.zero_borders(y, plane)
            with B.serial(images.height) as row:
                start = images.row(plane, row)
                for at in range(0, images.row_stride, target.lanes):
                    images.store(y, start, at, tir.let(images.load(x, start, at) * factor))
    return builder.get()


def _keeps_zero(epilogue: Epilogue) -> bool:
    """True when the activation of 0 is 0."""
    return epilogue.activation in _KEEP_ZERO or (epilogue.activation == "clip" and epilogue.low <= 0 <= epilogue.high)
