"""Pooling of images in lanes (BatchTiles): a window is a few whole vectors of each channel.

    for pixel of Y: which rows and columns of its window lie inside: for channel: combine them

Requires: BatchTiles; windows without dilation.
"""

from __future__ import annotations

import math
from typing import Literal

from sparsetvm.schedules.operators import Pooling
from sparsetvm.schedules.x86 import tir
from sparsetvm.schedules.x86.epilogue import zero_borders
from sparsetvm.schedules.x86.geometry import zeros_around
from tvm import tirx
from tvm.tirx.script import builder as B

from sparsetvm.core.layout import BatchTiles
from sparsetvm.core.target import Target


def batch_pooling_kernel(
    source: BatchTiles, out: BatchTiles, pooling: Pooling, target: Target, symbol: str
) -> tir.Expr:
    """PrimFunc (X, Y) of a window pooling. Every window must contain a pixel; zeros around the image are written."""
    with tir.prim_func(symbol) as builder:
        x, y = tir.flat_args(X=source.physical_shape(()), Y=out.physical_shape(()))
        zero_borders(y, zeros_around(out), out.lanes, target.threads)
        with tir.outer(out.height * out.width, target.threads) as at:
            _pixel(x, y, source, out, pooling, tir.let(at // out.width), tir.let(at % out.width))
    return builder.get()


def _pixel(
    x: tir.Buffer, y: tir.Buffer, source: BatchTiles, out: BatchTiles, pooling: Pooling, row: tir.Expr, column: tir.Expr
) -> None:
    lanes = source.lanes
    first_row, rows = _inside(pooling, 0, row, source.height)
    first_column, columns = _inside(pooling, 1, column, source.width)
    corner = tir.let((source.origin + first_row * source.row_stride + first_column) * source.pixel_stride)
    to = tir.let((out.origin + row * out.row_stride + column) * out.pixel_stride)
    area = math.prod(pooling.window.kernel) if pooling.include_pad else rows * columns
    scale = tir.let(tir.f32(1.0) / tirx.Cast("float32", area))
    with B.serial(source.channels) as channel:
        total = tir.Registers(1, lanes, fill=pooling.identity)
        with B.serial(rows) as r, B.serial(columns) as c:
            place = corner + (r * source.row_stride + c) * source.pixel_stride + channel * lanes
            vector = tir.vload(x, place, lanes)
            total[0] = tir.vmax_nan(tir.let(total[0]), vector) if pooling.kind == "max" else total[0] + vector
        value = total[0] if pooling.kind == "max" else total[0] * tir.splat(scale, lanes)
        tir.vstore(y, value, to + channel * lanes, lanes)


def _inside(pooling: Pooling, axis: int, position: tir.Expr, size: int) -> tuple[tir.Expr, tir.Expr]:
    """(first line, number of lines) of the image in the window at an output row (axis 0) or column (1)."""
    window = pooling.window
    begin = position * window.stride[axis] - window.pads[axis]
    first = tir.let(tirx.max(begin, tir.i32(0)))
    return first, tir.let(tirx.min(begin + window.kernel[axis], tir.i32(size)) - first)


def batch_global_pooling_kernel(
    source: BatchTiles, kind: Literal["max", "average"], target: Target, symbol: str
) -> tir.Expr:
    """PrimFunc (X, Y): one value per image and channel, Y plain (lanes, channels, 1, 1)."""
    lanes, channels = source.lanes, source.channels
    with tir.prim_func(symbol) as builder:
        x, y = tir.flat_args(X=source.physical_shape(()), Y=(lanes, channels, 1, 1))

        def block(first: tir.Expr, count: int) -> None:
            totals = tir.Registers(count, lanes, fill=-math.inf if kind == "max" else 0.0)
            with B.serial(source.height) as row, B.serial(source.width) as column:
                place = (source.origin + row * source.row_stride + column) * source.pixel_stride
                for i in range(count):
                    vector = tir.vload(x, place + (first + i) * lanes, lanes)
                    totals[i] = tir.vmax_nan(tir.let(totals[i]), vector) if kind == "max" else totals[i] + vector
            scale = tir.splat(1.0 / (source.height * source.width), lanes)
            values = [totals[i] if kind == "max" else totals[i] * scale for i in range(count)]
            values += [tir.splat(0.0, lanes)] * (lanes - count)
            for image, vector in enumerate(tir.transpose(values, lanes)):
                tir.vstore_lanes(y, vector, image * channels + first, lanes, 0, count)

        if channels // lanes:
            with tir.outer(channels // lanes, target.threads) as at:
                block(at * lanes, lanes)
        if channels % lanes:
            block(tir.i32(channels - channels % lanes), channels % lanes)
    return builder.get()
