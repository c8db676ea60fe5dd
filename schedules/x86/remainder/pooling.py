"""Maximum and average pooling, windowed and global, on plain images or Planes.

    for each plane: for each output row: combine the input rows of its window, one vector of columns at a time,
        then combine what `WindowColumns` picks of these for every column of the window

Loads replace pixels outside the image by the identity (-inf or 0), so the zero borders of Planes are never taken for
data. Rows whose window sticks out above or below get code of their own.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Literal

from sparsetvm.schedules.operators import Pooling
from sparsetvm.schedules.x86 import tir
from sparsetvm.schedules.x86.remainder.columns import WindowColumns
from sparsetvm.schedules.x86.remainder.images import Images
from sparsetvm.schedules.x86.remainder.runs import Combine, add, reduce_run
from tvm import tirx
from tvm.tirx.script import builder as B

from sparsetvm.core.layout import AnyLayout, Planes
from sparsetvm.core.target import Target

__all__ = ["Pooling", "global_pooling_kernel", "pooling_kernel"]


def _combine(pooling: Pooling, a: tir.Expr, b: tir.Expr) -> tir.Expr:
    """Combine two vectors; `a` must be bound with `let`."""
    return tir.vmax_nan(a, b) if pooling.kind == "max" else a + b


def _bound_max(a: tir.Expr, b: tir.Expr) -> tir.Expr:
    return tir.vmax_nan(tir.let(a), b)


def pooling_kernel(
    source: AnyLayout, destination: AnyLayout, batch: int, pooling: Pooling, target: Target, symbol: str
) -> tir.Expr:
    """PrimFunc (X, Y) of a window pooling; each layout is Plain (NCHW) or Planes with phases (1, 1).

    The number of channels is `pooling.window.in_channels`. Every window must contain a pixel. Everything of a Planes
    output outside the image becomes zero.
    """
    w = pooling.window
    in_shape = (batch, w.in_channels, w.in_height, w.in_width)
    out_shape = (batch, w.in_channels, w.out_height, w.out_width)
    images_in, images_out = Images(source, in_shape, target.lanes), Images(destination, out_shape, target.lanes)
    with tir.prim_func(symbol) as builder:
        x, y = tir.flat_args(X=source.physical_shape(in_shape), Y=destination.physical_shape(out_shape))
        plane = _WindowPlane(x, y, images_in, images_out, pooling, target)
        with tir.outer(images_in.planes, target.threads) as index:
            plane.compute(index)
    return builder.get()


class _WindowPlane:
    """Builds the pooling of one plane."""

    def __init__(
        self, x: tir.Buffer, y: tir.Buffer, source: Images, out: Images, pooling: Pooling, target: Target
    ) -> None:
        self.x, self.y, self.source, self.out, self.pooling = x, y, source, out, pooling
        self.lanes, self.window = target.lanes, pooling.window

    def compute(self, plane: tir.Expr) -> None:
        """All of output plane `plane`."""
        self.out.zero_borders(self.y, plane)
        height, full = self.out.height, self.window.kernel[0]
        whole = [y for y in range(height) if len(self.pooling.rows(y)) == full]
        begin, end = (whole[0], whole[-1] + 1) if whole else (height, height)
        for y in range(begin):
            self._out_row(plane, tir.i32(y), [tir.i32(at) for at in self.pooling.rows(y)])
        if end > begin:
            with B.serial(end - begin) as at:
                first = (at + begin) * self.window.stride[0] - self.window.pads[0]
                self._out_row(plane, at + begin, [first + k * self.window.dilation[0] for k in range(full)])
        for y in range(end, height):
            self._out_row(plane, tir.i32(y), [tir.i32(at) for at in self.pooling.rows(y)])

    def _out_row(self, plane: tir.Expr, y: tir.Expr, rows: Sequence[tir.Expr]) -> None:
        starts = [self.source.row(plane, row) for row in rows]

        def load(column: int) -> tir.Expr:
            parts = [self.source.load(self.x, start, column, self.pooling.identity) for start in starts]
            return functools.reduce(lambda a, b: tir.let(_combine(self.pooling, a, tir.let(b))), parts)

        w = self.window
        taps = [k * w.dilation[1] - w.pads[1] for k in range(w.kernel[1])]
        columns = WindowColumns(load, w.stride[1], taps, self.out.width, self.lanes)
        out_row = self.out.row(plane, y)
        for x in range(0, self.out.row_stride, self.lanes):
            value = tir.splat(0.0, self.lanes)
            if x < self.out.width:
                parts = [columns.tap(x, dx) for dx in taps]
                total = functools.reduce(lambda a, b: tir.let(_combine(self.pooling, a, b)), parts)
                value = self._scaled(columns.ordered(total), x, len(rows))
            self.out.store(self.y, out_row, x, value)

    def _scaled(self, value: tir.Expr, x: int, rows: int) -> tir.Expr:
        """`value` divided by the number of pixels in the windows; nothing for a maximum."""
        if self.pooling.kind == "max":
            return value
        kernel = self.window.kernel
        columns = [kernel[1]] * self.lanes
        if self.pooling.include_pad:
            rows = kernel[0]
        else:
            inside = [max(1, len(self.pooling.columns(i))) for i in range(x, min(x + self.lanes, self.out.width))]
            columns[: len(inside)] = inside
        # One select for every run of equal counts; LLVM folds them into a constant.
        scale = tir.splat(1.0 / (rows * columns[-1]), self.lanes)
        for lane in range(self.lanes - 1, 0, -1):
            if columns[lane - 1] != columns[lane]:
                mask = tir.lane_mask(0, lane, self.lanes)
                scale = tirx.Select(mask, tir.splat(1.0 / (rows * columns[lane - 1]), self.lanes), scale)
        return value * scale


def global_pooling_kernel(
    source: AnyLayout, shape: tuple[int, ...], kind: Literal["max", "average"], target: Target, symbol: str
) -> tir.Expr:
    """PrimFunc (X, Y): one value per channel, Y plain (batch, channels, 1, 1).

    `lanes` planes at a time, so that reducing the lanes of all of them costs one tree of shuffles. The average of
    Planes runs over the whole grid: its zero columns add nothing.
    """
    images = Images(source, shape, target.lanes)
    lanes, planes = target.lanes, images.planes
    as_run = isinstance(source, Planes) and kind == "average"
    total = _plane_run if as_run or images.row_stride == images.width else _plane_rows
    with tir.prim_func(symbol) as builder:
        x, y = tir.flat_args(X=source.physical_shape(shape), Y=(*shape[:2], 1, 1))

        def group(first: tir.Expr, count: int) -> None:
            combine = _bound_max if kind == "max" else add
            identity = -math.inf if kind == "max" else 0.0
            parts = [total(x, images, first + i, combine, identity) for i in range(count)]
            parts += [tir.splat(0.0, lanes)] * (lanes - count)
            value = tir.reduce_each(parts, lanes, combine)
            if kind == "average":
                value = value * tir.splat(1.0 / (images.height * images.width), lanes)
            tir.vstore_lanes(y, value, first, lanes, 0, count)

        if planes // lanes:
            with tir.outer(planes // lanes, target.threads) as block:
                group(block * lanes, lanes)
        if planes % lanes:
            group(tir.i32(planes - planes % lanes), planes % lanes)
    return builder.get()


def _plane_run(x: tir.Buffer, images: Images, plane: tir.Expr, combine: Combine, identity: float) -> tir.Expr:
    """All positions of a plane, pad columns included, combined into one vector."""
    return _run(x, images.row(plane, 0), images.height * images.row_stride, images.lanes, combine, identity)


def _plane_rows(x: tir.Buffer, images: Images, plane: tir.Expr, combine: Combine, identity: float) -> tir.Expr:
    """The pixels of a plane row by row, combined into one vector."""
    total = tir.Registers(1, images.lanes, fill=identity)
    with B.serial(images.height) as y:
        row = _run(x, images.row(plane, y), images.width, images.lanes, combine, identity)
        total[0] = combine(total[0], row)
    return total[0]


def _run(x: tir.Buffer, start: tir.Expr, count: int, lanes: int, combine: Combine, identity: float) -> tir.Expr:
    def load(offset: tir.Expr, end: int) -> tir.Expr:
        return tir.vload_lanes(x, start + offset, lanes, 0, end, identity)

    return reduce_run(count, lanes, load, combine, identity)
