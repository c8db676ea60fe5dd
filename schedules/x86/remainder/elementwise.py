"""Sums, products and activations of whole tensors, on the physical buffers: the layout hardly matters.

Requires: all operands in one layout. Where the function would not keep the zero borders of Planes zero (a sigmoid), the
image is walked row by row and the borders are written anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from sparsetvm.schedules.x86 import tir
from sparsetvm.schedules.x86.remainder.images import Images
from sparsetvm.schedules.x86.remainder.runs import each_vector, parallel_run
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
    """PrimFunc (X, S, Y): Y[b, c] = X[b, c] * S[b, c], S plain (batch, channels, 1, 1): a gate of whole channels."""

    def scaled(factors: list[tir.Buffer], plane: tir.Expr) -> Callable[[tir.Expr], tir.Expr]:
        factor = tir.let(tir.splat(factors[0][plane], target.lanes))
        return lambda value: tir.let(value * factor)

    return _by_plane(layout, shape, {"S": (*shape[:2], 1, 1)}, scaled, target, symbol)


def affine_channels_kernel(
    layout: AnyLayout, shape: tuple[int, ...], epilogue: Epilogue, target: Target, symbol: str
) -> tir.Expr:
    """PrimFunc (X, A, B, Y): Y[b, c] = activation(A[c] * X[b, c] + B[c]), A and B (channels,); Plain or Planes."""
    lanes, channels = target.lanes, shape[1]

    def line(factors: list[tir.Buffer], plane: tir.Expr) -> Callable[[tir.Expr], tir.Expr]:
        scale, shift = (tir.let(tir.splat(each[plane % channels], lanes)) for each in factors)

        def value(x: tir.Expr) -> tir.Expr:
            return tir.activated(tir.let(x * scale + shift), epilogue.activation, epilogue.low, epilogue.high, lanes)

        return value

    return _by_plane(layout, shape, {"A": (channels,), "B": (channels,)}, line, target, symbol)


def _by_plane(
    layout: AnyLayout,
    shape: tuple[int, ...],
    factors: dict[str, tuple[int, ...]],
    function: Callable[[list[tir.Buffer], tir.Expr], Callable[[tir.Expr], tir.Expr]],
    target: Target,
    symbol: str,
) -> tir.Expr:
    """PrimFunc (X, factors, Y) that applies function(factors, plane) to each vector of a plane.

    Planes are walked row by row: the zeros around an image stay zeros, whatever the function makes of a zero.
    """
    lanes, physical = target.lanes, layout.physical_shape(shape)
    images, pixels = Images(layout, shape, lanes), math.prod(shape[2:])
    with tir.prim_func(symbol) as builder:
        x, *values, y = tir.flat_args(X=physical, **factors, Y=physical)
        with tir.outer(images.planes, target.threads) as plane:
            apply = function(values, plane)
            if isinstance(layout, Planes):
                images.zero_borders(y, plane)
                with B.serial(images.height) as row:
                    start = images.row(plane, row)
                    for at in range(0, images.row_stride, lanes):
                        images.store(y, start, at, apply(tir.let(images.load(x, start, at))))
            else:

                def step(at: tir.Expr, end: int) -> None:
                    value = apply(tir.let(tir.vload_lanes(x, plane * pixels + at, lanes, 0, end)))
                    tir.vstore_lanes(y, value, plane * pixels + at, lanes, 0, end)

                each_vector(pixels, lanes, step)
    return builder.get()


def _keeps_zero(epilogue: Epilogue) -> bool:
    """True when the activation of 0 is 0."""
    return epilogue.activation in _KEEP_ZERO or (epilogue.activation == "clip" and epilogue.low <= 0 <= epilogue.high)
