"""A dense convolution of few input channels with the 2 x 2 max pooling behind it; what is pooled away is never stored.

    for tile of four rows (two after pooling):
        transform its input rows: 8 for a filter 5 high (formats/toom_cook.py)
        for 16 output channels: for two columns: for point: for kx and input channel: 2 FMAs
            four rows of both columns from the points, their maxima
        transpose; bias, activation

Lanes are output channels. Five rows of taps on four rows of outputs are 8 products instead of 20, and what comes out of
the points has 6 FMAs and 10 additions for each column. A tile whose input is huge or not finite is computed tap by tap:
there infinity and NaN stay with the windows that they are in.

Requires: AVX-512, stride 1, filters 3 to 5 high, weights below 1e10, plain images or Planes, Planes as output.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sparsetvm.schedules.x86 import tir
from sparsetvm.schedules.x86.minimal import from_points, larger_magnitude, largest_lane, to_points
from sparsetvm.schedules.x86.remainder.images import Images
from tvm import tirx
from tvm.tirx.script import builder as B

from sparsetvm.core.layout import AnyLayout, Planes
from sparsetvm.core.target import Target
from sparsetvm.core.workload import ConvGeometry, Epilogue
from sparsetvm.formats.toom_cook import HUGE, OUTPUTS, filter_matrix

_LANES = 16
_DIRECT = 4  # vectors of output channels at once where a tile is computed tap by tap


def pack_pooled_conv(weight: np.ndarray, bias: np.ndarray | None, conv: ConvGeometry) -> tuple[np.ndarray, ...]:
    """(transformed weights, plain weights, bias, zero) of a (m, channels * kh * kw) weight, m padded to vectors.

    Both are [m / 16][..][16]: the transformed ones [point][channel][kx], the plain ones [channel][ky][kx]. zero: one
    int32 for each column, added to where its weights lie. LLVM does not know it: it would keep the weights of all
    columns in registers, of which there are too few, and so on a stack that it does not align.
    """
    vectors = -(-len(weight) // _LANES)
    padded = np.zeros((vectors * _LANES, weight.shape[1]))
    padded[: len(weight)] = weight
    taps = padded.reshape(vectors, _LANES, conv.in_channels, *conv.kernel)
    transformed = np.einsum("py,vlcyx->vpcxl", filter_matrix(conv.kernel[0]), taps)
    start = np.zeros(vectors * _LANES, np.float32)
    if bias is not None:
        start[: len(weight)] = bias
    plain = taps.transpose(0, 2, 3, 4, 1)
    zero = np.zeros(conv.out_width // 2, np.int32)
    return transformed.astype(np.float32).ravel(), np.ascontiguousarray(plain, np.float32).ravel(), start, zero


def pooled_conv_kernel(
    source: AnyLayout, destination: Planes, conv: ConvGeometry, epilogue: Epilogue, target: Target, symbol: str
) -> tir.Expr:
    """PrimFunc (X, transformed weights, plain weights, B, zero, Y); `pack_pooled_conv` makes what is between X and Y.

    destination: of the pooled images, half as high and wide as those of `conv`; all of it outside the image becomes 0.
    """
    batch, m = destination.batch, destination.channels
    shape = (batch, conv.in_channels, conv.in_height, conv.in_width)
    rows, k = -(-m // _LANES) * _LANES, conv.in_channels * conv.kernel[0] * conv.kernel[1]
    transformed = conv.in_channels * conv.kernel[1] * (conv.kernel[0] + OUTPUTS - 1)
    with tir.prim_func(symbol) as builder:
        x, u, w, b, z, y = tir.flat_args(
            X=source.physical_shape(shape), U=(rows * transformed,), W=(rows * k,), B=(rows,),
            Z=(destination.width, "int32"), Y=destination.physical_shape(()),
        )  # fmt: skip
        out = Images(destination, (batch, m, destination.height, destination.width), _LANES)
        with tir.outer(out.planes, target.threads) as plane:
            out.zero_borders(y, plane)
        tiles = -(-destination.height // 2)
        with tir.outer(batch * tiles, target.threads) as at:
            _Tile(
                conv, epilogue, Images(source, shape, _LANES), out, (x, u, w, b, z, y), at // tiles, at % tiles
            ).compute()
    return builder.get()


class _Tile:
    """Four rows of a convolution, two of the pooled image."""

    def __init__(
        self, conv: ConvGeometry, epilogue: Epilogue, source: Images, out: Images, buffers: Any, image: Any, tile: Any
    ) -> None:
        self.conv, self.epilogue, self.source, self.out = conv, epilogue, source, out
        self.x, self.u, self.w, self.b, self.zero, self.y = buffers
        self.image, self.tile = image, tile
        self.channels = out.planes // (source.planes // conv.in_channels)
        self.vectors = -(-self.channels // _LANES)
        self.points = conv.kernel[0] + OUTPUTS - 1  # and as many input rows
        self.width = 2 * out.width + conv.kernel[1] - 1  # columns of X that are read
        self.stride = -(-self.width // _LANES) * _LANES

    def compute(self) -> None:
        inputs = self.conv.in_channels * self.points * self.stride
        self.rows, self.v = tir.scratch(inputs), tir.scratch(inputs)
        pooled = -(-self.out.width // _LANES) * _LANES
        self.sums = tir.scratch(2 * pooled * self.vectors * _LANES)
        largest = self._copy_rows()
        with B.If(largest < tir.f32(HUGE)):
            with B.Then():
                self._transform()
                with B.serial(self.vectors) as vector, B.serial(self.out.width) as column:
                    self._by_points(vector, column)
            with B.Else(), B.serial(self.out.width) as column:
                for first in range(0, self.vectors, _DIRECT):
                    for row in range(2):
                        self._by_taps(range(first, min(first + _DIRECT, self.vectors)), row, column)
        self._write()

    def _copy_rows(self) -> tir.Expr:
        """The input rows of the tile, zeros below and beside the image; the largest magnitude, or NaN."""
        conv, source = self.conv, self.source
        top = B.Bind(self.tile * OUTPUTS - conv.pads[0])
        largest = tir.Registers(1, _LANES, fill=0.0)
        with B.serial(conv.in_channels) as channel, B.serial(self.points) as r:
            y = B.Bind(top + r)
            inside = tirx.And(y >= 0, y < conv.in_height)
            nearest = tirx.max(tirx.min(y, conv.in_height - 1), 0)
            start = B.Bind(source.row(self.image * conv.in_channels + channel, nearest))
            for column in range(0, self.stride, _LANES):
                value = tir.let(source.load(self.x, start, column - conv.pads[1]))
                value = tir.let(tirx.Select(inside, value, tir.splat(0.0, _LANES)))
                largest[0] = larger_magnitude(value, largest[0], _LANES)
                tir.vstore(self.rows, value, (channel * self.points + r) * self.stride + column, _LANES)
        return largest_lane(tir.let(largest[0]), _LANES)

    def _transform(self) -> None:
        with B.serial(self.conv.in_channels) as channel, B.serial(self.stride // _LANES) as i:
            at = B.Bind(channel * self.points * self.stride + i * _LANES)
            loaded = [tir.let(tir.vload(self.rows, at + r * self.stride, _LANES)) for r in range(self.points)]
            for p, value in enumerate(to_points(loaded, self.conv.kernel[0], _LANES)):
                tir.vstore(self.v, value, at + p * self.stride, _LANES)

    def _by_points(self, vector: tir.Expr, column: tir.Expr) -> None:
        """Both pooled rows of one column, 16 output channels."""
        taps = self.conv.kernel[1]
        totals = [tir.Registers(self.points, _LANES) for _ in range(2)]
        zero = B.Bind(self.zero[column])
        for channel in range(self.conv.in_channels):
            for p in range(self.points):
                at = ((vector * self.points + p) * self.conv.in_channels + channel) * taps * _LANES + zero
                weights = [tir.let(tir.vload(self.u, at + kx * _LANES, _LANES)) for kx in range(taps)]
                start = (channel * self.points + p) * self.stride + 2 * column
                values = [tir.splat(self.v[start + i], _LANES) for i in range(taps + 1)]
                for kx in range(taps):
                    for i, total in enumerate(totals):
                        product = weights[kx] * values[kx + i]
                        total[p] = product if channel == 0 == kx else total[p] + product
        left, right = (
            from_points([total[p] for p in range(self.points)], self.conv.kernel[0], _LANES) for total in totals
        )
        for row in range(2):
            best = [tir.let(tir.vmax(left[2 * row + i], right[2 * row + i])) for i in range(2)]
            self._keep(row, column, vector, tir.vmax(best[0], best[1]))

    def _by_taps(self, vectors: range, row: int, column: tir.Expr) -> None:
        """One pooled row of one column, some vectors of output channels."""
        conv, (kh, kw) = self.conv, self.conv.kernel
        outputs = [(dy, dx) for dy in range(2) for dx in range(2)]
        totals = [tir.Registers(len(outputs), _LANES, fill=0.0) for _ in vectors]
        with B.serial(conv.in_channels) as channel, B.serial(kh) as ky:
            for kx in range(kw):
                first = (channel * self.points + 2 * row + ky) * self.stride + 2 * column + kx
                values = [tir.let(tir.splat(self.rows[first + dy * self.stride + dx], _LANES)) for dy, dx in outputs]
                for total, vector in zip(totals, vectors, strict=True):
                    at = (((vector * conv.in_channels + channel) * kh + ky) * kw + kx) * _LANES
                    weights = tir.let(tir.vload(self.w, at, _LANES))
                    for i, value in enumerate(values):
                        total[i] = total[i] + weights * value
        for total, vector in zip(totals, vectors, strict=True):
            pairs = [tir.let(tir.vmax_nan(total[2 * i], total[2 * i + 1])) for i in range(2)]
            self._keep(row, column, tir.i32(vector), tir.vmax_nan(pairs[0], pairs[1]))

    def _keep(self, row: int, column: tir.Expr, vector: tir.Expr, value: tir.Expr) -> None:
        tir.vstore(self.sums, value, self._at(row, column, vector), _LANES)

    def _at(self, row: int, column: tir.Expr, vector: tir.Expr) -> tir.Expr:
        padded = -(-self.out.width // _LANES) * _LANES
        return ((row * self.vectors + vector) * padded + column) * _LANES

    def _write(self) -> None:
        """The sums of both rows to Y: channels become planes."""
        for row in range(2):
            y = self.tile * 2 + row
            with B.If(y < self.out.height), B.Then(), B.serial(self.vectors) as vector:
                for first in range(0, self.out.width, _LANES):
                    at = self._at(row, tir.i32(first), vector)
                    rows = [tir.vload(self.sums, at + i * _LANES, _LANES) for i in range(_LANES)]
                    columns = tir.transpose(rows, _LANES)
                    for lane, value in enumerate(columns):
                        channel = vector * _LANES + lane
                        with B.If(channel < self.channels), B.Then():
                            total = tir.let(value + tir.splat(self.b[channel], _LANES))
                            e = self.epilogue
                            total = tir.let(tir.activated(total, e.activation, e.low, e.high, _LANES))
                            self.out.store(self.y, self.out.row(self.image * self.channels + channel, y), first, total)
