"""Depthwise convolution (groups == channels, multiplier 1): one plane in, one plane out, every tap a contiguous vector.

    for each plane: zero borders; for blocks of output rows: for x vectors: for input rows: for kx: load once,
        acc[row] += w[ky, kx] * loaded    (an input row serves every output row of the block that reads it)

Requires: X in Planes with phases == stride and a pad that covers all taps, Y (and the residual) in Planes with phases
(1, 1). Small planes with equal row strides are walked in position tiles instead, across row ends.
"""

from __future__ import annotations

import numpy as np
from sparsetvm.schedules.x86 import tir
from sparsetvm.schedules.x86.remainder.images import Images
from tvm.tirx.script import builder as B

from sparsetvm.core.layout import Planes
from sparsetvm.core.target import Target
from sparsetvm.core.workload import ConvGeometry, Epilogue
from sparsetvm.errors import SparseTvmError

_POSITION_TILES = 32  # walk positions instead of rows up to this many unrolled tiles
_UNROLLED_TAPS = 200  # limit of FMAs in one unrolled block


def pack_depthwise(weight: np.ndarray, bias: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """(channels * kh * kw,) weights and (channels,) bias from (channels, [1,] kh, kw) weights; no bias means zeros."""
    channels = weight.shape[0]
    start = np.zeros(channels) if bias is None else bias
    return np.ascontiguousarray(weight.reshape(-1), np.float32), np.ascontiguousarray(start, np.float32)


def depthwise_kernel(
    source: Planes, destination: Planes, conv: ConvGeometry, epilogue: Epilogue, target: Target, symbol: str
) -> tir.Expr:
    """PrimFunc (X, [residual], W, B, Y); W and B as `pack_depthwise` makes them (B is always there).

    Everything of Y outside the image becomes zero. Raises SparseTvmError when the layouts do not fit the convolution.
    """
    _check(source, destination, conv)
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


def _check(source: Planes, destination: Planes, conv: ConvGeometry) -> None:
    top, left, bottom, right = conv.pads
    # Phase rows and columns that taps reach outside the image; bottom and right pads may not be used in full.
    reach_y = max(-(-top // conv.stride[0]), -(-bottom // conv.stride[0]))
    reach_x = max(-(-left // conv.stride[1]), -(-right // conv.stride[1]))
    fits = (
        source.phases == conv.stride
        and destination.phases == (1, 1)
        and conv.groups == conv.in_channels == source.channels == destination.channels
        and source.batch == destination.batch
        and (destination.height, destination.width) == (conv.out_height, conv.out_width)
        and source.pad >= max(reach_y, reach_x)
    )
    if not fits:
        raise SparseTvmError(
            f"depthwise convolution {conv} cannot read {source} and write {destination}",
            hint="convert the input to Planes with phases equal to the stride and a pad that covers the taps",
        )


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
        self.rows = max(1, min(4, _UNROLLED_TAPS // self.taps))

    def compute(self, plane: tir.Expr) -> None:
        """All of output plane `plane` (an expression: image * channels + channel)."""
        phases = self.source.phases[0] * self.source.phases[1]
        image, channel = plane // self.source.channels, plane % self.source.channels
        plane_in = plane if phases == 1 else image * (phases * self.source.channels) + channel
        self.input = plane_in * self.source.plane_stride + self.source.origin
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
        same = self.source.row_stride == self.destination.row_stride
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
        for tile in range(self.destination.tiles):
            # Two sums halve the chain of dependent FMAs.
            sums = tir.Registers(2, self.lanes, fill=0.0)
            sums[0] = bias
            for t, (dy, dx) in enumerate(self._tap_offsets()):
                at = self.input + (tile * self.lanes + self.source.phase_tap(0, dy, dx))
                sums[t % 2] = sums[t % 2] + self.weights[t] * tir.vload(self.x, at, self.lanes)
            at = first + tile * self.lanes
            value = self._finish(sums[0] + sums[1], at, None)
            tir.vstore(self.y, tir.keep_where(value, [bool(m) for m in mask[tile]]), at, self.lanes)
        self.out.zero_borders(self.y, plane)

    def _row_block(self, plane: tir.Expr, first: tir.Expr, rows: int, bias: tir.Expr) -> None:
        """Output rows first ... first + rows - 1."""
        stride = self.conv.stride[0]
        # (input row, phase tap) -> [(output row, tap)]: rows dy of the image relative to row `first` * stride.
        readers: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for t, (dy, dx) in enumerate(self._tap_offsets()):
            for r in range(rows):
                readers.setdefault((dy + r * stride, dx), []).append((r, t))
        for x in range(0, self.destination.width, self.lanes):
            sums = tir.Registers(rows, self.lanes)
            for r in range(rows):
                sums[r] = bias
            for dy, dx in sorted(readers):
                at = self.input + first * self.source.row_stride + (x + self.source.phase_tap(0, dy, dx))
                loaded = tir.let(tir.vload(self.x, at, self.lanes))
                for r, t in readers[dy, dx]:
                    sums[r] = sums[r] + self.weights[t] * loaded
            for r in range(rows):
                row = self.out.row(plane, first + r)
                self.out.store(self.y, row, x, self._finish(sums[r], row + x, self.destination.width - x))
        for x in range(-(-self.destination.width // self.lanes) * self.lanes, self.out.row_stride, self.lanes):
            for r in range(rows):
                self.out.store(self.y, self.out.row(plane, first + r), x, tir.splat(0.0, self.lanes))

    def _finish(self, value: tir.Expr, at: tir.Expr, real: int | None) -> tir.Expr:
        """Residual and activation of a sum that will be stored at `at`; `real` lanes of it are pixels (None: all)."""
        if self.residual is not None:
            end = self.lanes if real is None else real
            value = value + tir.vload_lanes(self.residual, at, self.lanes, 0, end)
        e = self.epilogue
        return tir.activated(tir.let(value), e.activation, e.low, e.high, self.lanes)
