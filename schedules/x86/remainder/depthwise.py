"""Depthwise convolution (groups == channels, multiplier 1): one plane in, one plane out, every tap a vector.

    for each plane: zero borders; for blocks of output rows: for x vectors: for input rows: for kx:
        acc[row] += w[ky, kx] * columns(kx)    (an input row serves every output row of the block that reads it)

Requires: X in Planes with phases (1, 1) and a pad that covers all taps, Y (and the residual) in Planes with phases
(1, 1). A stride across picks columns by shuffles (`WindowColumns`): splitting X into stride phases first would move it
once more. Small planes with equal row strides are walked in position tiles instead, across row ends.
"""

from __future__ import annotations

from sparsetvm.schedules.operators import check_depthwise, pack_depthwise
from sparsetvm.schedules.x86 import tir
from sparsetvm.schedules.x86.remainder.columns import WindowColumns
from sparsetvm.schedules.x86.remainder.images import Images
from tvm.tirx.script import builder as B

from sparsetvm.core.layout import Planes
from sparsetvm.core.target import Target
from sparsetvm.core.workload import ConvGeometry, Epilogue

__all__ = ["depthwise_kernel", "pack_depthwise"]

_POSITION_TILES = 32  # walk positions instead of rows up to this many unrolled tiles
_UNROLLED_TAPS = 200  # limit of FMAs in one x vector of a block of rows
_UNROLLED_VECTORS = 32  # limit of output vectors in a block of rows; LLVM spills more and more above that


def depthwise_kernel(
    source: Planes, destination: Planes, conv: ConvGeometry, epilogue: Epilogue, target: Target, symbol: str
) -> tir.Expr:
    """PrimFunc (X, [residual], W, B, Y); W and B as `pack_depthwise` makes them (B is always there).

    Everything of Y outside the image becomes zero. Raises SparseTvmError when the layouts do not fit the convolution.
    """
    check_depthwise(source, destination, conv)
    shapes = {"X": source.physical_shape(())}
    if epilogue.residual:
        shapes["R"] = destination.physical_shape(())
    taps = conv.kernel[0] * conv.kernel[1]
    shapes |= {"W": (conv.in_channels * taps,), "B": (conv.in_channels,), "Y": destination.physical_shape(())}
    with tir.prim_func(symbol) as builder:
        names = dict(zip(shapes, tir.flat_args(**shapes), strict=True))
        plane = _Plane(source, destination, conv, epilogue, target, names)
        with tir.outer(source.batch * source.channels, target.threads) as index:
            plane.compute(index)
    return builder.get()


class _Plane:
    """Builds the computation of one plane; the fields are what all loops share."""

    def __init__(
        self,
        source: Planes,
        destination: Planes,
        conv: ConvGeometry,
        epilogue: Epilogue,
        target: Target,
        args: dict[str, tir.Buffer],
    ) -> None:
        self.source, self.destination, self.conv, self.epilogue = source, destination, conv, epilogue
        self.x, self.w, self.b, self.y = args["X"], args["W"], args["B"], args["Y"]
        self.residual = args.get("R")
        self.lanes = target.lanes
        shape = (destination.batch, destination.channels, destination.height, destination.width)
        self.out = Images(destination, shape, target.lanes)
        # Weights stay in registers when they and the accumulators fit.
        self.taps = conv.kernel[0] * conv.kernel[1]
        self.hoist = self.taps + 6 <= target.registers
        vectors = -(-destination.width // self.lanes)
        # Besides weights, registers hold a sum for every output row and what its input rows share.
        most = 2 if conv.stride[0] > 1 or (self.hoist and target.registers < 32) else 4
        self.rows = max(1, min(most, _UNROLLED_TAPS // self.taps, _UNROLLED_VECTORS // vectors))

    def compute(self, plane: tir.Expr) -> None:
        """All of output plane `plane` (an expression: image * channels + channel)."""
        channel = plane % self.source.channels
        self.input = plane * self.source.plane_stride + self.source.origin
        bias = tir.let(tir.splat(self.b[channel], self.lanes))
        weights = [tir.splat(self.w[channel * self.taps + t], self.lanes) for t in range(self.taps)]
        self.weights = [tir.let(w) for w in weights] if self.hoist else weights
        if self._use_positions():
            self._positions(plane, bias)
        else:
            self.out.zero_borders(self.y, plane)
            height = self.destination.height
            with B.serial(height // self.rows) as block:
                self._row_block(plane, block * self.rows, self.rows, bias)
            if height % self.rows:
                self._row_block(plane, tir.i32(height - height % self.rows), height % self.rows, bias)

    def _use_positions(self) -> bool:
        """True when the plane takes fewer vectors as one run of positions than row by row."""
        tiles, by_rows = self.destination.tiles, self.destination.height * -(-self.destination.width // self.lanes)
        same = self.source.row_stride == self.destination.row_stride and self.conv.stride == (1, 1)
        return same and tiles <= _POSITION_TILES and tiles * 5 <= by_rows * 4

    def _tap_offsets(self) -> list[tuple[int, int]]:
        """(dy, dx) of every tap in image pixels."""
        conv = self.conv
        return [
            (ky * conv.dilation[0] - conv.pads[0], kx * conv.dilation[1] - conv.pads[1])
            for ky in range(conv.kernel[0])
            for kx in range(conv.kernel[1])
        ]

    def _positions(self, plane: tir.Expr, bias: tir.Expr) -> None:
        """The whole plane in unrolled position tiles with constant masks."""
        mask = self.destination.mask()
        first = self.out.row(plane, 0)
        # The plane as one long row: a tap is a distance in it.
        taps = [self.source.tap(0, dy, dx) for dy, dx in self._tap_offsets()]
        columns = self._columns(tir.i32(0), 1, taps, self.destination.positions, self.lanes == 16)
        for tile in range(self.destination.tiles):
            # Two sums halve the chain of dependent FMAs.
            sums = tir.Registers(2, self.lanes, fill=0.0)
            sums[0] = bias
            for t, tap in enumerate(taps):
                sums[t % 2] = sums[t % 2] + self.weights[t] * columns.tap(tile * self.lanes, tap)
            at = first + tile * self.lanes
            value = self._finish(sums[0] + sums[1], at, None)
            tir.vstore(self.y, tir.keep_where(value, [bool(m) for m in mask[tile]]), at, self.lanes)
        self.out.zero_borders(self.y, plane)

    def _row_block(self, plane: tir.Expr, first: tir.Expr, rows: int, bias: tir.Expr) -> None:
        """Output rows first ... first + rows - 1."""
        down, across = self.conv.stride
        offsets, width = self._tap_offsets(), self.destination.width
        # Input row, relative to row `first` * down -> [(output row, dx, tap)].
        readers: dict[int, list[tuple[int, int, int]]] = {}
        for t, (dy, dx) in enumerate(offsets):
            for r in range(rows):
                readers.setdefault(dy + r * down, []).append((r, dx, t))
        # Wider windows do enough besides a load to hide its cost, and AVX2 needs two shuffles to move by a lane.
        share = self.lanes == 16 and self.conv.kernel[1] <= 3
        taps = [dx for _, dx in offsets]
        inputs = {
            dy: self._columns((first * down + dy) * self.source.row_stride, across, taps, width, share)
            for dy in sorted(readers)
        }
        for x in range(0, width, self.lanes):
            sums = tir.Registers(rows, self.lanes)
            for r in range(rows):
                sums[r] = bias
            for dy, columns in inputs.items():
                for r, dx, t in readers[dy]:
                    sums[r] = sums[r] + self.weights[t] * columns.tap(x, dx)
            ordered = inputs[min(inputs)].ordered
            for r in range(rows):
                row = self.out.row(plane, first + r)
                self.out.store(self.y, row, x, self._finish(ordered(sums[r]), row + x, width - x))
        for x in range(-(-width // self.lanes) * self.lanes, self.out.row_stride, self.lanes):
            for r in range(rows):
                self.out.store(self.y, self.out.row(plane, first + r), x, tir.splat(0.0, self.lanes))

    def _columns(self, row: tir.Expr, step: int, taps: list[int], width: int, share: bool) -> WindowColumns:
        """What `width` outputs read of the input row at offset `row` from pixel (0, 0)."""

        def load(column: int) -> tir.Expr:
            return tir.vload(self.x, self.input + row + column, self.lanes)

        return WindowColumns(load, step, taps, width, self.lanes, share)

    def _finish(self, value: tir.Expr, at: tir.Expr, real: int | None) -> tir.Expr:
        """Residual and activation of a sum that will be stored at `at`; `real` lanes of it are pixels (None: all)."""
        if self.residual is not None:
            end = self.lanes if real is None else real
            value = value + tir.vload_lanes(self.residual, at, self.lanes, 0, end)
        e = self.epilogue
        return tir.activated(tir.let(value), e.activation, e.low, e.high, self.lanes)
