"""The kernel of x86.dense_winograd, see there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sparsetvm.schedules.base import Packed
from sparsetvm.schedules.x86 import tir
from sparsetvm.schedules.x86.arguments import layer_args
from sparsetvm.schedules.x86.dense_winograd import (
    HIGH,
    PLANES,
    POINTS,
    filters_at_once,
    parts_of,
    strips_of,
    vectors_of,
)
from sparsetvm.schedules.x86.epilogue import zero_borders
from sparsetvm.schedules.x86.geometry import conv_of, grid_of, tap_geometry
from sparsetvm.schedules.x86.minimal import from_points, larger_magnitude, largest_lane, to_points
from tvm import tirx
from tvm.tirx.script import builder as tb

from sparsetvm.core.config import Config
from sparsetvm.core.layout import PlaneTiles
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload
from sparsetvm.formats.toom_cook import OUTPUTS, filter_matrix

_LANES = 16
_AHEAD = 512  # floats of the weight stream between a load and the prefetch for it


class WinogradKernel:
    """Builds the TIR; the fields are what all loops share."""

    def __init__(self, workload: Workload, config: Config, packed: Packed, target: Target) -> None:
        self.workload, self.config, self.packed, self.threads = workload, config, packed, target.threads
        self.g, self.conv, self.grid = tap_geometry(workload), conv_of(workload), grid_of(workload)
        self.row, self.width = self.grid.row_stride, self.conv.kernel[1]
        self.mr, self.nr = filters_at_once(workload, config), config.int("nr")
        self.strips = strips_of(workload, config)
        self.x_channel = int(self.g.taps[0][HIGH * self.width] - self.g.taps[0][0]) if self.conv.in_channels > 1 else 0
        # Of a channel and point: zeros left of the first group, then the groups; each is written in whole vectors.
        self.lead = self.conv.pads[1]
        most = max(self.strips)
        self.of_group = -(-self.row // _LANES) * _LANES
        written = self.lead + (most - 1) * self.row + self.of_group
        lines = -(-max(written, vectors_of(most, self.row) * _LANES + self.width - 1) // _LANES)
        # Not a multiple of 8 lines, or the channels share few sets of L1.
        self.stride = (lines + (lines % 8 == 0)) * _LANES

    def build(self, symbol: str) -> Any:
        with tir.prim_func(symbol) as ib:
            self.x, self.r, (self.u, self.b, self.limit, self.taps), self.y = layer_args(self.workload, self.packed)
            zero_borders(self.y, self.g.zeros, _LANES, self.threads)
            self._zero_tails()
            first = 0
            for groups in sorted(set(self.strips), reverse=True):
                self._strips(first, groups, self.strips.count(groups))
                first += groups * self.strips.count(groups)
        return ib.get()

    def _zero_tails(self) -> None:
        """What the last tile of each plane holds behind the last row."""
        used = self.conv.out_height * self.row % _LANES
        if not used:
            return
        with tir.outer(self.g.batch, self.threads) as image, tb.serial(self.workload.m) as channel:
            last = self.g.y0 + image * self.g.y_batch + (self.g.tiles - 1) * self.g.y_tile + channel * self.g.row_stride
            tir.vstore_lanes(self.y, tir.splat(0.0, _LANES), last, _LANES, used, _LANES)

    def _strips(self, first: int, groups: int, count: int) -> None:
        """`count` strips of as many groups, the first of which is `first`, of all images."""
        parts, _ = parts_of(self.workload, self.config, self.g.batch * count, groups, self.threads)
        blocks = -(-self.workload.m // self.mr)
        each = -(-blocks // parts)
        with tir.outer(self.g.batch * count * parts, self.threads) as at:
            image, part = at // (count * parts), at % parts
            group = tb.Bind(first + at // parts % count * groups)
            self.v = tir.scratch(POINTS * self.conv.in_channels * self.stride)
            self.m = tir.scratch(POINTS * self.mr * self.nr * _LANES)
            largest = self._transform(image, group, groups)
            with tb.If(largest < self.limit[0]):
                with tb.Then():
                    self._each_block(part, each, lambda f, mr: self._by_points(image, group, groups, f, mr))
                with tb.Else():
                    self._each_block(part, each, lambda f, mr: self._by_taps(image, group, groups, f, mr))

    def _each_block(self, part: Any, each: int, body: Callable[[Any, int], None]) -> None:
        """Call body(first filter, MR) for the blocks of a part, `each` of them; the last of all is short."""
        whole, short = divmod(self.workload.m, self.mr)
        begin = tb.Bind(tirx.min(part * each, tir.i32(whole)))
        end = tb.Bind(tirx.min((part + 1) * each, tir.i32(whole)))
        with tb.serial(end - begin) as block:
            body((begin + block) * self.mr, self.mr)
        if short:
            with tb.If(part == whole // each), tb.Then():
                body(tir.i32(whole * self.mr), short)

    def _transform(self, image: Any, first: Any, groups: int) -> Any:
        """V of the input rows of a strip; returns their largest magnitude, or NaN."""
        points = self.conv.in_channels * self.stride
        largest = tir.Registers(1, _LANES, fill=0.0)
        # Below the last row that an output reads, that one again: what the points make of it is never stored.
        last = self.conv.out_height - 1 + HIGH - 1
        start = self.g.x0 + image * self.g.x_batch + int(self.g.taps[0][0]) + self.lead
        end = self.lead + (groups - 1) * self.row + self.of_group
        with tb.serial(self.conv.in_channels) as channel:
            for p in range(POINTS):
                for at in (0, *range(end, self.stride - _LANES, _LANES), self.stride - _LANES):
                    tir.vstore(self.v, tir.splat(0.0, _LANES), p * points + channel * self.stride + at, _LANES)
            with tb.serial(groups) as group:
                top = (first + group) * OUTPUTS
                rows = [tb.Bind(tirx.min(top + i, tir.i32(last)) * self.row) for i in range(POINTS)]
                with tb.serial(self.of_group // _LANES) as vector:
                    base = start + channel * self.x_channel + vector * _LANES
                    loaded = [tir.let(tir.vload(self.x, base + row, _LANES)) for row in rows]
                    for value in loaded:
                        largest[0] = larger_magnitude(value, largest[0], _LANES)
                    to = channel * self.stride + self.lead + group * self.row + vector * _LANES
                    for p, value in enumerate(to_points(loaded, HIGH, _LANES)):
                        tir.vstore(self.v, value, to + p * points, _LANES)
        return largest_lane(tir.let(largest[0]), _LANES)

    def _by_points(self, image: Any, first: Any, groups: int, filters: Any, mr: int) -> None:
        """Some filters of a strip."""
        vectors = vectors_of(groups, self.row)
        filters = tb.Bind(filters)
        if vectors // self.nr:
            with tb.serial(vectors // self.nr) as block:
                self._block(image, (first, groups), filters, mr, block * self.nr, self.nr)
        if vectors % self.nr:
            last = vectors - vectors % self.nr
            self._block(image, (first, groups), filters, mr, tir.i32(last), vectors % self.nr)

    def _block(self, image: Any, strip: tuple[Any, int], filters: Any, mr: int, vector: Any, nr: int) -> None:
        """Four rows of NR vectors of MR filters."""
        k = self.conv.in_channels * self.width
        each = [(f, n, f * nr + n) for f in range(mr) for n in range(nr)]
        with tb.serial(POINTS) as p:
            u0 = tb.Bind(filters * PLANES * k + p * k * mr)
            v0 = tb.Bind(p * self.conv.in_channels * self.stride + vector * _LANES)
            acc, values = tir.Registers(mr * nr, _LANES, fill=0.0), tir.Registers(nr, _LANES)
            with tb.serial(self.conv.in_channels) as channel:
                for kx in range(self.width):
                    weights = u0 + (channel * self.width + kx) * mr
                    for line in range(-(-mr // _LANES)):
                        tir.prefetch(self.u, weights + _AHEAD + line * _LANES)
                    for n in range(nr):
                        at = v0 + channel * self.stride + n * _LANES + kx
                        values[n] = tir.vload(self.v, at, _LANES)
                    for f, n, i in each:
                        acc[i] = acc[i] + tir.splat(self.u[weights + f], _LANES) * values[n]
            for _, _, i in each:
                tir.vstore(self.m, acc[i], p * mr * nr * _LANES + i * _LANES, _LANES)
        self._rows(mr * nr)
        with tb.serial(nr) as n:
            self._store_vector(image, strip, filters, mr, vector + n, n * _LANES, nr)

    def _rows(self, count: int) -> None:
        """Of `count` vectors four rows from their points, in the place of the first four."""
        with tb.serial(count) as i:
            points = [tir.let(tir.vload(self.m, (p * count + i) * _LANES, _LANES)) for p in range(POINTS)]
            for r, value in enumerate(from_points(points, HIGH, _LANES)):
                tir.vstore(self.m, value, (r * count + i) * _LANES, _LANES)

    def _store_vector(
        self, image: Any, strip: tuple[Any, int], filters: Any, mr: int, vector: Any, at: Any, nr: int
    ) -> None:
        """Write a vector of each filter to Y: what it holds of each group goes to four rows."""
        first, groups = strip
        position = tb.Bind(vector * _LANES)
        most = 1 + -(-(_LANES - 1) // self.row)  # groups that a vector has part in
        with tb.serial(most) as step, tb.serial(OUTPUTS) as r:
            group = tb.Bind(position // self.row + step)
            begin = tb.Bind(group * self.row - position)  # the lane of its first column
            y = tb.Bind((first + group) * OUTPUTS + r)
            here = tirx.all(group < groups, begin < _LANES, y < self.conv.out_height)
            with tb.If(here), tb.Then(), tb.serial(mr) as f:
                value = tir.let(tir.vload(self.m, at + ((r * mr + f) * nr) * _LANES, _LANES))
                self._finish(value, image, filters + f, y * self.row - begin, begin)

    def _by_taps(self, image: Any, first: Any, groups: int, filters: Any, mr: int) -> None:
        """The same product by product; the rows of taps are points 0 and infinity and what is behind those."""
        k = self.conv.in_channels * self.width
        planes = ((0, 1.0 / filter_matrix(HIGH)[0, 0]), (POINTS, 1.0), (POINTS - 1, 1.0))
        filters = tb.Bind(filters)
        rows = tb.Bind(tirx.min(tir.i32(groups * OUTPUTS), self.conv.out_height - first * OUTPUTS))
        with tb.serial(mr) as f, tb.serial(rows) as row, tb.serial(self.of_group // _LANES) as vector:
            y = tb.Bind(first * OUTPUTS + row)
            x0 = tb.Bind(self.g.x0 + image * self.g.x_batch + y * self.row + vector * _LANES)
            acc = tir.Registers(1, _LANES, fill=0.0)
            with tb.serial(self.conv.in_channels) as channel, tb.serial(self.width) as kx:
                for ky, (plane, factor) in enumerate(planes):
                    w = self.u[filters * PLANES * k + (plane * k + channel * self.width + kx) * mr + f]
                    tap = self.taps[channel * (HIGH * self.width) + ky * self.width + kx]
                    x = tir.vload(self.x, x0 + tap, _LANES)
                    acc[0] = acc[0] + tir.splat(w * tir.f32(factor), _LANES) * x
            self._finish(acc[0], image, filters + f, y * self.row + vector * _LANES, 0 - vector * _LANES)

    def _finish(self, value: Any, image: Any, channel: Any, position: Any, begin: Any) -> None:
        """Write the lanes of a row, which begins in lane `begin`, to Y; lane 0 is at `position` of the grid."""
        e, g = self.workload.epilogue, self.g
        column = tirx.Ramp(tir.i32(0), 1, _LANES) - tirx.Broadcast(begin, _LANES)
        inside = tirx.And(column >= tirx.Broadcast(tir.i32(0), _LANES), self._below(column, self.row))
        total = tir.let(value + tir.splat(self.b[channel], _LANES))
        if self.r is not None:
            base = g.r0 + image * g.r_batch + channel * g.residual_stride
            tiled = isinstance(self.workload.residual_layout, PlaneTiles)
            for at, mask in self._places(base, position, g.r_tile, inside, tiled):
                loaded = tb.masked_load(f"float32x{_LANES}", self.r, tirx.Ramp(at, 1, _LANES), mask)
                total = tir.let(total + tirx.Select(mask, loaded, tir.splat(0.0, _LANES)))
        total = tir.let(tir.activated(total, e.activation, e.low, e.high, _LANES))
        total = tir.let(tirx.Select(self._below(column, self.conv.out_width), total, tir.splat(0.0, _LANES)))
        base = g.y0 + image * g.y_batch + channel * g.row_stride
        for at, mask in self._places(base, position, g.y_tile, inside, isinstance(self.grid, PlaneTiles)):
            tb.evaluate(tb.masked_store(self.y, total, tirx.Ramp(at, 1, _LANES), mask))

    @staticmethod
    def _below(column: Any, end: int) -> Any:
        return column < tirx.Broadcast(tir.i32(end), _LANES)

    @staticmethod
    def _places(base: Any, position: Any, step: int, inside: Any, tiled: bool) -> list[tuple[Any, Any]]:
        """(offset of lane 0, mask) of the accesses that reach 16 positions: two where these lie in two tiles."""
        if not tiled:
            return [(base + position, inside)]
        tile, lane = tb.Bind(position // _LANES), tb.Bind(position % _LANES)
        lanes = tirx.Ramp(tir.i32(0), 1, _LANES)
        here = lanes < tirx.Broadcast(tir.i32(_LANES) - lane, _LANES)
        return [
            (base + tile * step + lane, tirx.And(inside, here)),
            (base + (tile + 1) * step + lane - _LANES, tirx.And(inside, tirx.Not(here))),
        ]
