"""Maximum and average pooling, windowed and global, on plain images or Planes.

    for each plane: for each output row: combine the input rows of its window into a scratch row (vertical pass),
        then combine shifted, strided reads of the scratch row (horizontal pass)

The scratch row has the identity (-inf or 0) left and right of the image, so windows are clipped to pixels: the zero
borders of Planes are never taken for data. Rows whose window sticks out above or below get code of their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import msgspec
from sparsetvm.schedules.x86 import tir
from sparsetvm.schedules.x86.remainder.images import Images, fill
from sparsetvm.schedules.x86.remainder.runs import Combine, add, reduce_run
from tvm.tirx.script import builder as B

from sparsetvm.core.layout import AnyLayout, Planes
from sparsetvm.core.target import Target
from sparsetvm.core.workload import ConvGeometry

_SHUFFLED_STRIDE = 4  # strides above this are gathered one float at a time


class Pooling(msgspec.Struct, frozen=True):
    """A pooling window; `window` gives kernel, stride, pads, dilation, channels and input size (groups do not matter).

    include_pad: average over the whole window, pad columns too (count_include_pad of ONNX).
    """

    kind: Literal["max", "average"]
    window: ConvGeometry
    include_pad: bool = False

    @property
    def identity(self) -> float:
        """What does not change the result of combining."""
        return -math.inf if self.kind == "max" else 0.0

    def combine(self, a: tir.Expr, b: tir.Expr) -> tir.Expr:
        """Combine two vectors; like maxps, a maximum may drop a NaN of `a`."""
        return tir.vmax(a, b) if self.kind == "max" else a + b

    def rows(self, out_row: int) -> list[int]:
        """Input rows inside the image that output row `out_row` reads."""
        return self._inside(0, out_row, self.window.in_height)

    def columns(self, out_column: int) -> list[int]:
        """Input columns inside the image that output column `out_column` reads."""
        return self._inside(1, out_column, self.window.in_width)

    def _inside(self, axis: int, position: int, size: int) -> list[int]:
        w = self.window
        first = position * w.stride[axis] - w.pads[axis]
        return [at for k in range(w.kernel[axis]) if 0 <= (at := first + k * w.dilation[axis]) < size]


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
        vectors = -(-out.width // self.lanes)
        self.left = self.window.pads[1]
        reach = (self.window.kernel[1] - 1) * self.window.dilation[1] + self.window.stride[1] - 1
        self.scratch_floats = max(vectors * self.lanes * self.window.stride[1], self.left + source.width) + reach
        self.scratch_floats += (self.window.stride[1] + 1) * self.lanes

    def compute(self, plane: tir.Expr) -> None:
        """All of output plane `plane`."""
        self.row = tir.scratch(self.scratch_floats)
        fill(self.row, tir.i32(0), self.scratch_floats, self.pooling.identity, self.lanes)
        self.counts = self._column_counts()
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

    def _column_counts(self) -> tir.Buffer | None:
        """1 / (columns of the window inside the image) of every output column, where that varies."""
        if self.pooling.kind == "max" or self.pooling.include_pad:
            return None
        full = self.window.kernel[1]
        counts = [len(self.pooling.columns(x)) for x in range(self.out.width)]
        if all(count == full for count in counts):
            return None
        table = tir.scratch(-(-self.out.width // self.lanes) * self.lanes)
        fill(table, tir.i32(0), -(-self.out.width // self.lanes) * self.lanes, 1.0 / full, self.lanes)
        for x, count in enumerate(counts):
            if count != full:
                B.buffer_store(table, tir.f32(1.0 / max(count, 1)), [x])
        return table

    def _out_row(self, plane: tir.Expr, y: tir.Expr, rows: Sequence[tir.Expr]) -> None:
        for x in range(0, self.source.width, self.lanes):
            value = self.source.load(self.x, self.source.row(plane, rows[0]), x)
            for row in rows[1:]:
                value = self.pooling.combine(value, tir.let(self.source.load(self.x, self.source.row(plane, row), x)))
                value = tir.let(value)
            tir.vstore_lanes(self.row, value, tir.i32(self.left + x), self.lanes, 0, self.source.width - x)
        out_row = self.out.row(plane, y)
        for x in range(0, self.out.row_stride, self.lanes):
            if x >= self.out.width:
                self.out.store(self.y, out_row, x, tir.splat(0.0, self.lanes))
            else:
                self.out.store(self.y, out_row, x, self._scaled(self._horizontal(x), x, len(rows)))

    def _horizontal(self, x: int) -> tir.Expr:
        """The window's columns of output pixels x ... x + lanes - 1 combined."""
        step, lanes, dilation = self.window.stride[1], self.lanes, self.window.dilation[1]
        total: tir.Expr | None = None
        loaded: dict[int, tir.Expr] = {}
        for k in range(self.window.kernel[1]):
            # Column k * dilation = base + phase: one group of `step` vectors serves all phases.
            base, phase = divmod(k * dilation, step)
            start = x * step + base * step
            if step > _SHUFFLED_STRIDE:
                value = self.row[tir.strided(tir.i32(start + phase), step, lanes)]
            else:
                for v in range(step):
                    if start + v * lanes not in loaded:
                        loaded[start + v * lanes] = tir.let(tir.vload(self.row, tir.i32(start + v * lanes), lanes))
                group = [loaded[start + v * lanes] for v in range(step)]
                value = group[0] if step == 1 else tir.every(group, step, phase, lanes)
            value = tir.let(value)
            total = value if total is None else tir.let(self.pooling.combine(total, value))
        return total

    def _scaled(self, value: tir.Expr, x: int, rows: int) -> tir.Expr:
        if self.pooling.kind == "max":
            return value
        kernel = self.window.kernel
        if self.pooling.include_pad:
            return value * tir.splat(1.0 / (kernel[0] * kernel[1]), self.lanes)
        if self.counts is None:
            return value * tir.splat(1.0 / (rows * kernel[1]), self.lanes)
        counts = tir.vload(self.counts, tir.i32(x), self.lanes)
        return value * tir.splat(1.0 / rows, self.lanes) * counts


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
            combine = tir.vmax if kind == "max" else add
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
