"""Sparse convolution of sparse activations: only what a non-zero activation meets is computed.

    list the non-zero activations of all input channels and where they lie (vcompressps)
    for slice of 16 output rows:
        for entry (rows of one tap of one channel): for activation of the channel that ky takes into the image:
            sums[position - tap][rows] += weights * activation
        transpose the sums: residual, activation function, planes

Requires: AVX-512, stride 1, planes, blocks of 8 or more rows, a workload whose activation density is known. The sums of
a position lie together, so that one activation adds to `height` of them at once; it is bound by their stores (32 bytes
per clock on a Zen 4). Where a tap takes an activation left or right out of the image the product falls on a column
between the rows, which no one reads. formats/conv_columns.py has the format. For every input right,
whatever its density: NaN counts as non-zero.

The idea is the sparse-sparse convolution of Hunter, Spracklen and Ahmad ("Two Sparsities Are Better Than One", 2021).
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from sparsetvm.schedules.base import Packed, Template
from sparsetvm.schedules.x86.arguments import initial_sums, layer_args
from sparsetvm.schedules.x86.epilogue import finish_vector, zero_borders
from sparsetvm.schedules.x86.geometry import supports_taps, tap_geometry

from sparsetvm.core.config import Config
from sparsetvm.core.layout import Planes
from sparsetvm.core.target import Target
from sparsetvm.core.workload import ConvGeometry, Workload
from sparsetvm.formats.conv_columns import LANES, ConvColumns, pack_conv_columns
from sparsetvm.space.knobs import Ordered
from sparsetvm.space.space import Space

_HEIGHTS = (8, 16)
_WORTH_IT = 0.2  # activation density up to which it beats what reads all of X
_STEP = 4  # activations for each turn of the inner loop


class ConvColumnsTemplate(Template):
    """Template x86.conv_columns."""

    name = "x86.conv_columns"
    version = 1

    def matches(self, workload: Workload, target: Target) -> bool:
        conv = workload.conv
        known = workload.activation_density is not msgspec.UNSET
        if conv is None or not known or target.isa != "avx512" or not _heights(workload) or not supports_taps(workload):
            return False
        planes = isinstance(workload.layout_in, Planes) and isinstance(workload.layout_out, Planes)
        return planes and conv.stride == (1, 1) and conv.groups == 1

    def preferred(self, workload: Workload, target: Target) -> bool:
        density = workload.activation_density
        return isinstance(density, float) and density <= _WORTH_IT

    def space(self, workload: Workload, target: Target) -> Space:
        return Space(self.name, (Ordered("height", _heights(workload)),))

    def default(self, workload: Workload, target: Target) -> Config:
        return Config.of(self.name, height=_heights(workload)[-1])

    def pack(
        self, weight: np.ndarray, bias: np.ndarray | None, workload: Workload, config: Config, target: Target
    ) -> Packed:
        conv, source = _conv(workload), _planes(workload.layout_in)
        rows = np.arange(conv.kernel[0]) * conv.dilation[0] - conv.pads[0]
        columns = np.arange(conv.kernel[1]) * conv.dilation[1] - conv.pads[1]
        positions = rows[:, None] * source.row_stride + columns
        packed = pack_conv_columns(weight, conv.kernel, positions, target.threads, config.int("height"))
        start = initial_sums(bias, workload.m)
        # Where, among the rows of all input channels, those begin and end that an entry meets, and where its channel
        # lies. One entry more: the next one is read ahead.
        channel, ky = np.divmod(np.append(packed.lines, 0), conv.kernel[0])
        tops = np.clip(rows, 0, conv.in_height)
        bottoms = np.clip(conv.out_height + rows, tops, conv.in_height)
        first_row, plane = channel * (conv.in_height + 1), channel * source.plane_stride + source.origin
        spans = np.stack([first_row + tops[ky], first_row + bottoms[ky], plane], axis=1)
        arrays = (
            packed.values,
            np.append(packed.offsets, np.int32(0)),
            spans.ravel().astype(np.int32),
            packed.first,
            packed.bounds,
            start,
        )
        return Packed((*arrays, tap_geometry(workload).mask_bits()), {"format": packed})

    def kernel(self, workload: Workload, config: Config, packed: Packed, target: Target, symbol: str) -> Any:
        from sparsetvm.schedules.x86 import tir

        with tir.prim_func(symbol) as builder:
            _Kernel(workload, packed, target.threads).body()
        return builder.get()


class _Kernel:
    """Builds the TIR; the fields are what all loops share."""

    def __init__(self, workload: Workload, packed: Packed, threads: int) -> None:
        self.workload, self.threads = workload, threads
        self.conv, self.source = _conv(workload), _planes(workload.layout_in)
        self.geometry = tap_geometry(workload)
        self.format: ConvColumns = packed.meta["format"]
        self.x, self.r, arrays, self.y = layer_args(workload, packed)
        self.values, self.offsets, self.spans, self.first, self.bounds, self.bias, self.mask = arrays

    def body(self) -> None:
        from sparsetvm.schedules.x86 import tir
        from tvm.tirx.script import builder as tb

        conv, source = self.conv, self.source
        zero_borders(self.y, self.geometry.zeros, self.geometry.lanes, self.threads)
        # Positions before the first that a tap can reach from its first row, and all that an activation could reach
        # did ky not choose rows: the last turn of the inner loop may go on to rows below those of ky.
        self.before = max(0, (conv.kernel[1] - 1) * conv.dilation[1] - conv.pads[1])
        reach = (conv.in_height + 1 + max(0, conv.pads[0])) * source.row_stride + max(0, conv.pads[1]) + LANES
        positions = self.before + max(reach, self.geometry.tiles * LANES)
        listed = conv.in_channels * (conv.in_height * conv.in_width + _STEP) + LANES
        with tir.outer(self.threads, self.threads) as part:
            sums = tir.scratch(positions * LANES)
            self.places = tb.alloc_buffer((listed,), "int32", scope="local")
            starts = conv.in_channels * (conv.in_height + 1)
            self.row_starts = tb.alloc_buffer((starts,), "int32", scope="local")
            with tb.serial(self.geometry.batch) as image:
                self._list_activations(image)
                with tb.serial(self.bounds[part + 1] - self.bounds[part]) as at:
                    rows = tb.Bind(self.bounds[part] + at)
                    with tb.serial(positions) as i:
                        tir.vstore(sums, tir.splat(0.0, LANES), i * LANES, LANES)
                    self._add_entries(rows, image, sums)
                    with tb.serial(self.geometry.tiles) as tile:
                        self._finish(image, tile, rows, sums)

    def _list_activations(self, image: Any) -> None:
        """Where in their planes the non-zero activations of an image lie, and where those of each row begin."""
        from sparsetvm.schedules.x86 import tir
        from tvm import tirx
        from tvm.tirx.script import builder as tb

        conv, source = self.conv, self.source
        found = tb.alloc_buffer((1,), "int32", scope="global")
        tb.buffer_store(found, tir.i32(0), [0])
        with tb.serial(conv.in_channels) as channel:
            start = tb.Bind((image * conv.in_channels + channel) * source.plane_stride + source.origin)
            row_start = tb.Bind(channel * (conv.in_height + 1))
            with tb.serial(conv.in_height) as y:
                tb.buffer_store(self.row_starts, found[0], [row_start + y])
                for column in range(0, conv.in_width, LANES):
                    at = y * source.row_stride + column
                    real = min(LANES, conv.in_width - column)
                    # What lies behind the row is in the plane as well. No masked load: LLVM makes `vexpandps` of those
                    # whose mask it knows, which takes 5 clocks on a Zen 4.
                    value = tir.let(tir.vload(self.x, start + at, LANES))
                    mask = tir.is_non_zero(value, LANES)
                    if real < LANES:
                        mask = tirx.And(mask, tir.lane_mask(0, real, LANES))
                    count = tir.let(tir.count_lanes(mask))
                    places = tir.let(tir.compress(tirx.Ramp(at, tir.i32(1), LANES), mask))
                    # Rarely more than eight; a store of 32 bytes takes half as long as one of 64.
                    low = tirx.Shuffle([places], list(range(8)))
                    tb.buffer_store(self.places, low, [tirx.Ramp(found[0], 1, 8)])
                    with tb.If(count > 8), tb.Then():
                        tb.buffer_store(self.places, places, [tirx.Ramp(found[0], 1, LANES)])
                    tb.buffer_store(found, found[0] + count, [0])
            tb.buffer_store(self.row_starts, found[0], [row_start + conv.in_height])
            # What the last turn of an inner loop may find behind the end: a place below the image, where X is zero.
            below = tirx.Broadcast(tir.i32(conv.in_height * source.row_stride), _STEP)
            tb.buffer_store(self.places, below, [tirx.Ramp(found[0], 1, _STEP)])
            tb.buffer_store(found, found[0] + _STEP, [0])

    def _add_entries(self, rows: Any, image: Any, sums: Any) -> None:
        """Add what all entries of a slice make of the activations of their channels to its sums.

        What an entry needs is read while the one before is added: a mispredicted end of a loop then costs only that.
        """
        from sparsetvm.schedules.x86 import tir
        from tvm.tirx.script import builder as tb

        height, base = self.format.height, tb.Bind(image * self.conv.in_channels * self.source.plane_stride)
        begin, end, plane, offset = cells = [tb.alloc_buffer((1,), "int32", scope="global") for _ in range(4)]

        def read(entry: Any) -> None:
            spans = [self.spans[3 * entry + i] for i in range(3)]
            offset = self.offsets[entry] + self.before * LANES
            found = (self.row_starts[spans[0]], self.row_starts[spans[1]], base + spans[2], offset)
            for cell, value in zip(cells, found, strict=True):
                tb.buffer_store(cell, value, [0])

        first = tb.Bind(self.first[rows])
        read(first)
        with tb.serial(self.first[rows + 1] - first) as number:
            entry = tb.Bind(first + number)
            now = [tir.let(cell[0]) for cell in (begin, end, plane, offset)]
            read(entry + 1)
            # Not bound to a cell: TVM would merge that with those of other vectors. LLVM loads it once all the same.
            weights = tir.vload(self.values, entry * height, height)
            with tb.serial((now[1] - now[0] + (_STEP - 1)) // _STEP) as turn:
                for step in range(_STEP):
                    place = tb.Bind(self.places[now[0] + turn * _STEP + step])
                    at = tb.Bind(place * LANES + now[3])
                    total = tir.vload(sums, at, height) + weights * tir.splat(self.x[now[2] + place], height)
                    tir.vstore(sums, total, at, height)

    def _finish(self, image: Any, tile: Any, rows: Any, sums: Any) -> None:
        """16 positions of 16 rows: transposed, with bias, residual and activation, to Y."""
        from sparsetvm.schedules.x86 import tir
        from tvm.tirx.script import builder as tb

        g, m = self.geometry, self.workload.m
        first = (tile * LANES + self.before) * LANES
        columns = tir.transpose([tir.vload(sums, first + i * LANES, LANES) for i in range(LANES)], LANES)
        mask = self.mask[tile] if g.mask is not None else None

        def write(lanes: int) -> None:
            for lane in range(lanes):
                row = rows * LANES + lane
                at_r = g.r0 + image * g.r_batch + tile * g.r_tile + row * g.residual_stride
                total = tir.let(columns[lane] + tir.splat(self.bias[row], LANES))
                value = finish_vector(total, self.r, at_r, self.workload.epilogue, g, mask)
                tir.vstore(self.y, value, g.y0 + image * g.y_batch + tile * g.y_tile + row * g.row_stride, LANES)

        if m % LANES == 0:
            write(LANES)
            return
        with tb.If((rows + 1) * LANES <= m):
            with tb.Then():
                write(LANES)
            with tb.Else():
                write(m % LANES)


def _heights(workload: Workload) -> tuple[int, ...]:
    """Rows that one entry may have: what divides the height of blocks, so that no zero is multiplied."""
    height = workload.pattern.block[0] if workload.pattern.kind == "block" else 1
    return tuple(rows for rows in _HEIGHTS if height % rows == 0)


def _conv(workload: Workload) -> ConvGeometry:
    if workload.conv is None:
        raise TypeError("a convolution workload has its geometry")
    return workload.conv


def _planes(layout: Any) -> Planes:
    if not isinstance(layout, Planes):
        raise TypeError(f"{type(layout).__name__} holds no planes")
    return layout
