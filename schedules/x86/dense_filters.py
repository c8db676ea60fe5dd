"""Dense convolution with output channels (filters) in the lanes: no lane computes a pixel that is none.

    for block of V vectors of filters, part of the tiles:  # shared among threads
        for K block:                                       # its weights stay in L2
            for P pixels:  P x V accumulators; for k: V loads of weights, P broadcasts, P * V FMAs
        for tile of Y: 16 x 16 transpositions, from pixels to channels, then the epilogue

`x86.dense` has 16 positions of the grid in a vector, of which a 7 x 7 image leaves 23 % empty, a 14 x 14 one 13 %. Here
a vector holds filters, and only real pixels are computed; oneDNN's direct convolutions have the same lanes, in a layout
of their own. The transposition is one store and one load for each K FMAs.

Requires: one convolution group, images in Planes or PlaneTiles whose tiles have empty lanes; weights packed
[M / (V * lanes)][K][V * lanes].
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sparsetvm.schedules.base import Packed, Template
from sparsetvm.schedules.x86.arguments import initial_sums, layer_args
from sparsetvm.schedules.x86.epilogue import finish_vector, zero_borders
from sparsetvm.schedules.x86.geometry import TapGeometry, grid_of, supports_taps, tap_geometry, tap_offset

from sparsetvm.core.config import Config
from sparsetvm.core.layout import BatchTiles
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload
from sparsetvm.space.knobs import Ordered
from sparsetvm.space.space import Space

_MOST_REAL = 0.95  # share of lanes that are pixels, above which there is nothing to win
_PREFERRED_REAL = 0.9
_EVEN = 0.7  # share of their time that threads have work, below which x86.dense is the default
_PIXELS = (4, 5, 6, 7, 8)  # at once: each has its address in a register of its own
_AHEAD = 512  # floats of the weight stream between a load and the prefetch for it
_LINE = 16  # floats


class DenseFilters(Template):
    """Template x86.dense_filters."""

    name = "x86.dense_filters"
    version = 1
    dense = True

    def matches(self, workload: Workload, target: Target) -> bool:
        conv = workload.conv
        if conv is None or conv.groups != 1 or isinstance(workload.layout_in, BatchTiles):
            return False
        return supports_taps(workload) and workload.m >= target.lanes and _real(workload) <= _MOST_REAL

    def preferred(self, workload: Workload, target: Target) -> bool:
        if target.isa != "avx512" or _real(workload) > _PREFERRED_REAL:
            return False
        return target.threads == 1 or _useful(workload, self.default(workload, target), target) >= _EVEN

    def space(self, workload: Workload, target: Target) -> Space:
        vectors = tuple(v for v in (1, 2, 3, 4, 5) if (v - 1) * target.lanes < workload.m and v * 4 < target.registers)
        blocks = tuple(b for b in (256, 512, 1024, 2048) if b < workload.k)
        return Space(
            self.name,
            (Ordered("vectors", vectors), Ordered("pixels", _PIXELS), Ordered("k_block", (*blocks, workload.k))),
        )

    def default(self, workload: Workload, target: Target) -> Config:
        vectors, _, blocks = self.space(workload, target).knobs
        shapes = [(p, int(v)) for v in vectors.values for p in _PIXELS if _fits(p, int(v), target)]
        most = max(p * v for p, v in shapes)
        configs = []
        for pixels, wide in sorted((s for s in shapes if 4 * s[0] * s[1] >= 3 * most), key=lambda s: -s[0] * s[1]):
            k_block = min(blocks.values, key=lambda b: abs(int(b) - target.l2 // (16 * wide * target.lanes)))
            configs.append(Config.of(self.name, vectors=wide, pixels=pixels, k_block=k_block))
        return max(configs, key=lambda config: _useful(workload, config, target))

    def writes_in_place(self, workload: Workload, config: Config) -> bool:
        return workload.epilogue.residual

    def pack(
        self, weight: np.ndarray, bias: np.ndarray | None, workload: Workload, config: Config, target: Target
    ) -> Packed:
        g, width = tap_geometry(workload), config.int("vectors") * target.lanes
        short = -workload.m % width
        padded = np.pad(g.arranged(weight), ((0, short), (0, 0))).astype(np.float32)
        blocks = padded.reshape(-1, width, workload.k).transpose(0, 2, 1)
        start = np.pad(initial_sums(bias, workload.m), (0, short))
        tiles, at_once = _tiles_of_a_part(workload, config, target), _pixels_at_once(config, target)
        parts = _pixels(workload, tiles)
        longest = max(map(len, parts)) + -max(map(len, parts)) % at_once
        at = np.stack([np.pad(part, (0, longest - len(part))) for part in parts])
        places = at // g.lanes * g.x_tile + at % g.lanes
        # What is missing to whole groups of pixels has sums of its own, which nobody reads.
        missing = np.arange(longest) >= np.array([[len(part)] for part in parts])
        at = np.where(missing, tiles * g.lanes, at - np.arange(len(parts))[:, None] * tiles * g.lanes)
        tables = (g.taps[0], places.ravel(), at.ravel())
        arrays = (np.ascontiguousarray(blocks).ravel(), start, *(table.astype(np.int32) for table in tables))
        return Packed((*arrays, g.mask_bits()), {"parts": len(parts), "tiles": tiles})

    def kernel(self, workload: Workload, config: Config, packed: Packed, target: Target, symbol: str) -> Any:
        return _FiltersKernel(workload, config, packed, target).build(symbol)


class _FiltersKernel:
    """Builds the TIR; the fields are what all loops share."""

    def __init__(self, workload: Workload, config: Config, packed: Packed, target: Target) -> None:
        self.workload, self.packed, self.threads = workload, packed, target.threads
        self.geometry: TapGeometry = tap_geometry(workload)
        self.lanes, self.vectors = target.lanes, config.int("vectors")
        self.width = self.vectors * self.lanes
        self.pixels = _pixels_at_once(config, target)
        self.k_block = config.int("k_block")
        self.parts, self.tiles = packed.meta["parts"], packed.meta["tiles"]
        self.groups = packed.arrays[3].size // (self.parts * self.pixels)

    def build(self, symbol: str) -> Any:
        from sparsetvm.schedules.x86 import tir
        from tvm import tirx
        from tvm.tirx.script import builder as tb

        g = self.geometry
        with tir.prim_func(symbol) as ib:
            self.x, self.r, arrays, self.y = layer_args(self.workload, self.packed)
            self.w, self.bias, self.taps, self.places, self.positions, self.mask = arrays
            zero_borders(self.y, g.zeros, g.lanes, self.threads)
            items = -(-self.workload.m // self.width) * self.parts
            with tb.serial(g.batch) as image, tir.outer(items, self.threads) as item:
                block, part = item // self.parts, item % self.parts
                # By positions of the grid, so that a tile is a stretch of it; what is no pixel is never read as one.
                self.sums = tir.scratch((self.tiles * g.lanes + 1) * self.width)
                self._begin(block)
                with tb.serial(-(-self.workload.k // self.k_block)) as k:
                    self._multiply(image, block, part, k * self.k_block)
                first = part * self.tiles
                with tb.serial(tirx.min(tir.i32(self.tiles), tir.i32(g.tiles) - first)) as tile:
                    self._finish(image, block, first + tile, tile)
        return ib.get()

    def _begin(self, block: Any) -> None:
        """Set all sums to the bias."""
        from sparsetvm.schedules.x86 import tir
        from tvm.tirx.script import builder as tb

        values = [tir.let(tir.vload(self.bias, self._filter(block, v), self.lanes)) for v in range(self.vectors)]
        with tb.serial(self.tiles * self.geometry.lanes) as at:
            for v, value in enumerate(values):
                tir.vstore(self.sums, value, at * self.width + v * self.lanes, self.lanes)

    def _filter(self, block: Any, vector: int) -> Any:
        return block * self.width + vector * self.lanes

    def _multiply(self, image: Any, block: Any, part: Any, begin: Any) -> None:
        """Add the products of a K block to the sums of all pixels of a part."""
        from sparsetvm.schedules.x86 import tir
        from tvm import tirx
        from tvm.tirx.script import builder as tb

        g, lanes = self.geometry, self.lanes
        count = tirx.min(tir.i32(self.k_block), tir.i32(self.workload.k) - begin)
        with tb.serial(self.groups) as group:
            first = (part * self.groups + group) * self.pixels
            places = [tir.let(g.x0 + image * g.x_batch + self.places[first + p]) for p in range(self.pixels)]
            sums = [tir.let(self.positions[first + p] * self.width) for p in range(self.pixels)]
            acc = tir.Registers(self.pixels * self.vectors, lanes)
            each = [(p, v, p * self.vectors + v) for p in range(self.pixels) for v in range(self.vectors)]
            for p, v, i in each:
                acc[i] = tir.vload(self.sums, sums[p] + v * lanes, lanes)
            weights = tir.Registers(self.vectors, lanes)
            with tb.serial(count) as at:
                k = tb.Bind(begin + at)
                w0 = (block * self.workload.k + k) * self.width
                for line in range(-(-self.width // _LINE)):
                    tir.prefetch(self.w, w0 + _AHEAD + line * _LINE)
                for v in range(self.vectors):
                    weights[v] = tir.vload(self.w, w0 + v * lanes, lanes)
                tap = tb.Bind(tap_offset(self.geometry.taps[0], self.taps, k))
                for p in range(self.pixels):
                    value = tir.splat(self.x[places[p] + tap], lanes)
                    for v in range(self.vectors):
                        acc[p * self.vectors + v] = acc[p * self.vectors + v] + value * weights[v]
            for p, v, i in each:
                tir.vstore(self.sums, acc[i], sums[p] + v * lanes, lanes)

    def _finish(self, image: Any, block: Any, tile: Any, of_part: Any) -> None:
        """Write the sums of a tile to Y, channel by channel; it is the tile `of_part` of its part."""
        from sparsetvm.schedules.x86 import tir
        from tvm.tirx.script import builder as tb

        g, lanes = self.geometry, self.lanes
        mask = self.mask[tile] if g.mask is not None else None
        with tb.serial(self.vectors) as vector:
            first = tb.Bind(block * self.width + vector * lanes)
            source = of_part * lanes * self.width + vector * lanes
            rows = tir.transpose([tir.vload(self.sums, source + i * self.width, lanes) for i in range(lanes)], lanes)
            for i, row in enumerate(rows):
                at = g.y0 + image * g.y_batch + tile * g.y_tile + (first + i) * g.row_stride
                at_r = g.r0 + image * g.r_batch + tile * g.r_tile + (first + i) * g.residual_stride
                if self.workload.m % self.width == 0:
                    self._store(row, at, at_r, mask)
                else:
                    with tb.If(first + i < self.workload.m), tb.Then():
                        self._store(row, at, at_r, mask)

    def _store(self, row: Any, at: Any, at_r: Any, mask: Any) -> None:
        from sparsetvm.schedules.x86 import tir

        value = finish_vector(row, self.r, at_r, self.workload.epilogue, self.geometry, mask)
        tir.vstore(self.y, value, at, self.lanes)


def _mask(workload: Workload) -> np.ndarray:
    """(tiles, lanes) bool: which positions of the grid of Y are pixels; `tap_geometry`'s, without all of its taps."""
    return grid_of(workload).mask()


def _real(workload: Workload) -> float:
    """Share of the lanes that are pixels."""
    return float(_mask(workload).mean())


def _pixels(workload: Workload, tiles: int) -> list[np.ndarray]:
    """Positions of the pixels of an image in the grid, of each part of `tiles` tiles."""
    mask = _mask(workload)
    total, lanes = mask.shape
    return [first * lanes + np.flatnonzero(mask[first : first + tiles]) for first in range(0, total, tiles)]


def _tiles_of_a_part(workload: Workload, config: Config, target: Target) -> int:
    """As many as give threads even work, of which the sums take no more than a quarter of L2."""
    total = len(_mask(workload))
    sums = 4 * config.int("vectors") * target.lanes**2  # bytes of a tile
    most = min(total, max(1, target.l2 // 4 // sums))
    if target.threads == 1:
        return most
    sizes = sorted({-(-total // parts) for parts in range(-(-total // most), total + 1)}, reverse=True)
    return min(sizes, key=lambda tiles: _rounds(workload, config, target, tiles))


def _rounds(workload: Workload, config: Config, target: Target, tiles: int) -> int:
    """Groups of pixels that the thread with most of them computes for a vector of filters."""
    at_once, wide = _pixels_at_once(config, target), config.int("vectors")
    parts = _pixels(workload, tiles)
    items = -(-workload.m // (wide * target.lanes)) * len(parts)
    return -(-items // target.threads) * wide * -(-max(map(len, parts)) // at_once)


def _useful(workload: Workload, config: Config, target: Target) -> float:
    """What all threads compute of use, of what they could in the time of the one that has most."""
    tiles = _tiles_of_a_part(workload, config, target)
    computed = _rounds(workload, config, target, tiles) * _pixels_at_once(config, target) * target.lanes
    return workload.m * np.count_nonzero(_mask(workload)) / (computed * target.threads)


def _fits(pixels: int, vectors: int, target: Target) -> bool:
    """Whether the sums, a weight for each vector and a pixel fit the registers, or LLVM spills."""
    return (pixels + 1) * vectors + 1 <= target.registers


def _pixels_at_once(config: Config, target: Target) -> int:
    """At most the pixels of the config, as many as there are registers for."""
    return max(p for p in range(1, config.int("pixels") + 1) if _fits(p, config.int("vectors"), target))
