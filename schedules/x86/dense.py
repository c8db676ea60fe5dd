"""Dense product and convolution on the same taps as the sparse kernels: the baseline that always competes.

    for tile block (NR vectors), row block (MR rows):       # or rows outside, tiles inside
        MR x NR accumulators; for k: NR loads, MR broadcasts, MR * NR FMAs

Requires: layouts that `supports_taps`; weights packed [M / MR][K][MR]. The register tile is the classic one of Goto and
van de Geijn's GEMM; prototypes reach 1.05-1.17x ONNX Runtime with 8x2 and 4x4.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sparsetvm.schedules.base import Packed, Template
from sparsetvm.schedules.x86.arguments import initial_sums, layer_args
from sparsetvm.schedules.x86.epilogue import finish_vector, zero_borders
from sparsetvm.schedules.x86.geometry import TapGeometry, supports_taps, tap_geometry, tap_offset

from sparsetvm.core.config import Config
from sparsetvm.core.layout import BatchTiles
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload
from sparsetvm.space.knobs import Choice, Ordered
from sparsetvm.space.space import Space

_AHEAD = 512  # floats of the weight stream between a load and the prefetch for it


class Dense(Template):
    """Template x86.dense."""

    name = "x86.dense"
    version = 1
    dense = True

    def matches(self, workload: Workload, target: Target) -> bool:
        return supports_taps(workload)

    def space(self, workload: Workload, target: Target) -> Space:
        rows = (4, 6, 8, 12, 14, 24) if target.registers == 32 else (2, 3, 4, 6)
        return Space(
            self.name,
            (Ordered("mr", rows), Ordered("nr", (1, 2, 3, 4, 5, 6)), Choice("order", ("tiles", "rows"))),
        )

    def default(self, workload: Workload, target: Target) -> Config:
        tiles = tap_geometry(workload).tiles
        budget = 8 if target.registers != 32 else 24  # accumulators
        if tiles <= 6:
            # One block holds all tiles, so that the weights are read once.
            nr = min(tiles, 4) if target.registers != 32 else tiles
            mr = max(value for value in self.space(workload, target).knobs[0].values if int(value) * nr <= budget)
            return Config.of(self.name, mr=mr, nr=nr, order="tiles")
        if target.registers != 32:
            return Config.of(self.name, mr=4, nr=2, order="tiles")
        # Images in lanes lie pixel by pixel: a few pixels stay in L1 while the weights pass.
        in_lanes = isinstance(workload.layout_in, BatchTiles)
        if 4 * workload.m * workload.k > target.l2 // 2 and not in_lanes:
            return Config.of(self.name, mr=12, nr=2, order="rows")
        return Config.of(self.name, mr=8, nr=3, order="tiles")

    def writes_in_place(self, workload: Workload, config: Config) -> bool:
        return workload.epilogue.residual

    def pack(
        self, weight: np.ndarray, bias: np.ndarray | None, workload: Workload, config: Config, target: Target
    ) -> Packed:
        geometry, mr = tap_geometry(workload), config.int("mr")
        weight, rows = geometry.arranged(weight), geometry.rows_per_group
        blocks = [
            weight[group + start : group + min(start + mr, rows)].T.ravel()
            for group in range(0, workload.m, rows)
            for start in range(0, rows, mr)
        ]
        start = initial_sums(bias, workload.m)
        taps = geometry.taps[0].astype(np.int32)
        arrays = (np.concatenate(blocks).astype(np.float32), start, taps, geometry.mask_bits())
        return Packed(arrays)

    def kernel(self, workload: Workload, config: Config, packed: Packed, target: Target, symbol: str) -> Any:
        return _DenseKernel(workload, config, packed, target).build(symbol)


class _DenseKernel:
    """Builds the TIR; the fields are what all loops share."""

    def __init__(self, workload: Workload, config: Config, packed: Packed, target: Target) -> None:
        self.workload, self.packed, self.threads = workload, packed, target.threads
        self.geometry: TapGeometry = tap_geometry(workload)
        self.mr = min(config.int("mr"), self.geometry.rows_per_group)
        # Accumulators, NR activation vectors and one weight must fit the register file, or LLVM spills.
        self.nr = max(1, min(config.int("nr"), self.geometry.tiles, (target.registers - 1) // (self.mr + 1)))
        self.tiles_outside = config.str("order") == "tiles"
        self.group_step = int(self.geometry.taps[1][0] - self.geometry.taps[0][0]) if len(self.geometry.taps) > 1 else 0

    def build(self, symbol: str) -> Any:

        from sparsetvm.schedules.x86 import tir

        with tir.prim_func(symbol) as ib:
            self.x, self.r, (self.w, self.b, self.taps, self.mask), self.y = layer_args(self.workload, self.packed)
            zero_borders(self.y, self.geometry.zeros, self.geometry.lanes, self.threads)
            self._loops()
        return ib.get()

    def _loops(self) -> None:
        from sparsetvm.schedules.x86 import tir
        from tvm.tirx.script import builder as tb

        g = self.geometry
        tile_blocks = -(-g.tiles // self.nr)
        if self.threads > 1 and g.batch * tile_blocks < 2 * self.threads:
            for image in range(g.batch):
                self._each_row_block(lambda rows, mr, image=image: self._each_tile_block(image, rows, mr), self.threads)
        elif self.tiles_outside:
            with tir.outer(g.batch * (g.tiles // self.nr), self.threads) as at:
                per_image = g.tiles // self.nr
                image, tile = at // per_image, at % per_image * self.nr
                self._each_row_block(lambda rows, mr: self._block(image, tile, self.nr, rows, mr), 1)
            if g.tiles % self.nr:
                with tir.outer(g.batch, self.threads) as image:
                    last = g.tiles - g.tiles % self.nr
                    self._each_row_block(lambda rows, mr: self._block(image, last, g.tiles % self.nr, rows, mr), 1)
        else:
            with tb.serial(g.batch) as image:
                self._each_row_block(lambda rows, mr: self._each_tile_block(image, rows, mr), self.threads)

    def _each_tile_block(self, image: Any, rows: Any, mr: int) -> None:
        from tvm.tirx.script import builder as tb

        g = self.geometry
        if g.tiles // self.nr:
            with tb.serial(g.tiles // self.nr) as at:
                self._block(image, at * self.nr, self.nr, rows, mr)
        if g.tiles % self.nr:
            self._block(image, g.tiles - g.tiles % self.nr, g.tiles % self.nr, rows, mr)

    def _each_row_block(self, body: Any, threads: int) -> None:
        """Call body(first row, MR) for all row blocks of all convolution groups; the last block of a group is short."""
        from sparsetvm.schedules.x86 import tir
        from tvm.tirx.script import builder as tb

        rows = self.geometry.rows_per_group
        groups = self.workload.m // rows
        with tir.outer(groups, threads if groups > 1 else 1) as group:
            with tir.outer(rows // self.mr, threads if groups == 1 else 1) as block:
                body((group, block * self.mr), self.mr)
            if rows % self.mr:
                with tb.serial(1) as once:
                    body((group, rows - rows % self.mr + once), rows % self.mr)

    def _block(self, image: Any, tile: Any, nr: int, rows: tuple[Any, Any], mr: int) -> None:
        from sparsetvm.schedules.x86 import tir
        from tvm.tirx.script import builder as tb

        g, k, lanes = self.geometry, self.workload.k, self.geometry.lanes
        group, first = rows
        row = group * g.rows_per_group + first
        w0 = row * k
        x0 = g.x0 + image * g.x_batch + tile * g.x_tile + group * self.group_step
        acc, xv = tir.Registers(mr * nr, lanes), tir.Registers(nr, lanes)
        for m in range(mr):
            for n in range(nr):
                acc[m * nr + n] = tir.splat(self.b[row + m], lanes)
        begin, end = self._columns(image)
        with tb.serial(end - begin) as at:
            i = tb.Bind(begin + at)
            tap = x0 + tap_offset(self.geometry.taps[0], self.taps, i)
            tir.prefetch(self.w, w0 + i * mr + _AHEAD)
            for n in range(nr):
                xv[n] = tir.vload(self.x, tap + n * g.x_tile, lanes)
            for m in range(mr):
                weight = tir.splat(self.w[w0 + i * mr + m], lanes)
                for n in range(nr):
                    acc[m * nr + n] = acc[m * nr + n] + weight * xv[n]
        for n in range(nr):
            mask = self.mask[tile + n] if g.mask is not None else None
            for m in range(mr):
                at = g.y0 + image * g.y_batch + (tile + n) * g.y_tile + (row + m) * g.row_stride
                at_r = g.r0 + image * g.r_batch + (tile + n) * g.r_tile + (row + m) * g.residual_stride
                value = finish_vector(acc[m * nr + n], self.r, at_r, self.workload.epilogue, g, mask)
                tir.vstore(self.y, value, at, lanes)

    def _columns(self, image: Any) -> tuple[Any, Any]:
        """First and last + 1 column of W that reads a pixel: those above and below the image are its ends."""
        from sparsetvm.schedules.x86 import tir
        from tvm import tirx

        begin, end, inside = tir.i32(0), tir.i32(self.workload.k), self.geometry.inside
        if inside is not None:
            for first in np.unique(inside[:, 0])[1:]:
                begin += tirx.Select(image < tir.i32(int(first)), tir.i32(_count(inside[:, 0], first)), tir.i32(0))
            for last in np.unique(inside[:, 1])[:-1]:
                end -= tirx.Select(image >= tir.i32(int(last)), tir.i32(_count(inside[:, 1], last)), tir.i32(0))
        return begin, end


def _count(values: np.ndarray, value: int) -> int:
    return int(np.count_nonzero(values == value))
