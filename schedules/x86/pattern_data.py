"""SpMM and sparse convolution with the non-zero pattern in arrays: one small kernel for weights of any pattern.

    for K block: for tile block (NR vectors):       # KB * NR vectors of X stay in L1
        for rows of equal length: for non-zeros: NR FMAs
        or, in a pattern of blocks, for strips of R rows: for columns that they use: R * NR FMAs on NR loads of X

Requires: layouts that `supports_taps`. Runs on AVX-512 and AVX2. Rows of a K block are sorted by length
(formats/bucketed_csr.py says why). Single rows are bound by the loads of X: about 70 % of what code reaches on
L1-resident tiles, but their 8 bytes per non-zero win where code would be used too few times. Strips of 4 or 8 rows
reach 90 % of the FMA peak, which code cannot: its instructions are fetched from L2, these are a small loop.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sparsetvm.schedules.base import Packed, Template
from sparsetvm.schedules.x86.arguments import initial_sums, layer_args
from sparsetvm.schedules.x86.epilogue import finish_vector, zero_borders
from sparsetvm.schedules.x86.geometry import TapGeometry, strip_rows, supports_taps, tap_geometry

from sparsetvm.core.config import Config
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload
from sparsetvm.formats.bucketed_csr import pack_bucketed_csr
from sparsetvm.space.knobs import Ordered
from sparsetvm.space.space import Space

# Outputs of this size, and residuals, come from beyond L2 when they are needed.
_FAR_BYTES = 1 << 19
_NON_ZEROS_AHEAD = 160  # about what a line from memory takes, at nr = 8
# Measured on a Zen 5, 1024 x 1024 and 128 columns: rows of a strip; columns that it should use in a K block.
_DEFAULT_ROWS, _COLUMNS_OF_A_STRIP = 4, 50


class PatternData(Template):
    """Template x86.pattern_data."""

    name = "x86.pattern_data"
    version = 2

    def matches(self, workload: Workload, target: Target) -> bool:
        return workload.pattern.kind != "dense" and workload.nnz > 0 and supports_taps(workload)

    def space(self, workload: Workload, target: Target) -> Space:
        blocks = tuple(b for b in (64, 128, 256, 512, 1024) if b < workload.k)
        knobs = (
            Ordered("nr", (1, 2, 3, 4, 6, 7, 8)),
            Ordered("k_block", (*blocks, workload.k)),
            Ordered("unroll", (1, 2, 4)),
        )
        strips = strip_rows(workload)
        # Patterns without strips keep the space that their records are of.
        return Space(self.name, (*knobs, Ordered("rows", strips)) if len(strips) > 1 else knobs)

    def default(self, workload: Workload, target: Target) -> Config:
        tiles = tap_geometry(workload).tiles
        strips = strip_rows(workload)
        widths = (4, 3, 2, 1) if target.registers == 32 else (8, 7, 6, 4, 3, 2, 1)
        blocks = self.space(workload, target).knobs[1].values
        if len(strips) == 1:
            nr = next(v for v in widths if v <= tiles)
            k_block = min(blocks, key=lambda v: abs(int(v) - (8192 // target.lanes) // nr))
            return Config.of(self.name, nr=nr, k_block=k_block, unroll=2)
        rows = max(v for v in strips if v <= _DEFAULT_ROWS)
        nr = next(v for v in widths if v <= min(tiles, _most_vectors(rows, target)))
        # So many columns that a strip has enough of them in a block to pay for the pass of its sums through Y.
        k_block = min(blocks, key=lambda v: abs(int(v) - _COLUMNS_OF_A_STRIP / workload.pattern.density))
        return Config.of(self.name, nr=nr, k_block=k_block, unroll=1, rows=rows)

    def pack(
        self, weight: np.ndarray, bias: np.ndarray | None, workload: Workload, config: Config, target: Target
    ) -> Packed:
        geometry = tap_geometry(workload)
        weight = geometry.arranged(weight)
        csr = pack_bucketed_csr(weight, geometry.taps, geometry.rows_per_group, config.int("k_block"), _rows(config))
        start = initial_sums(bias, workload.m)
        return Packed((*csr.arrays(), start, geometry.mask_bits()), {"blocks": csr.blocks})

    def kernel(self, workload: Workload, config: Config, packed: Packed, target: Target, symbol: str) -> Any:
        return _DataKernel(workload, config, packed, target).build(symbol)


class _DataKernel:
    """Builds the TIR; the fields are what all loops share."""

    def __init__(self, workload: Workload, config: Config, packed: Packed, target: Target) -> None:
        self.workload, self.packed, self.threads = workload, packed, target.threads
        self.geometry: TapGeometry = tap_geometry(workload)
        self.strip = _rows(config)
        self.nr = min(config.int("nr"), self.geometry.tiles, _most_vectors(self.strip, target))
        self.unroll = config.int("unroll")
        self.blocks: list[int] = packed.meta["blocks"].tolist()
        row = workload.nnz / (workload.m * (len(self.blocks) - 1)) * self.strip
        self.rows_ahead = min(32, max(4, round(_NON_ZEROS_AHEAD / max(row, 1.0))))

    def build(self, symbol: str) -> Any:

        from sparsetvm.schedules.x86 import tir

        with tir.prim_func(symbol) as ib:
            self.x, self.r, arrays, self.y = layer_args(self.workload, self.packed)
            self.runs, _, self.rows, self.offsets, self.values, self.bias, self.mask = arrays
            zero_borders(self.y, self.geometry.zeros, self.geometry.lanes, self.threads)
            self._tiles()
        return ib.get()

    def _tiles(self) -> None:
        from sparsetvm.schedules.x86 import tir

        g = self.geometry
        per_image, rest = g.tiles // self.nr, g.tiles % self.nr
        with tir.outer(g.batch * per_image, self.threads) as at:
            self._tile_block(at // per_image, at % per_image * self.nr, self.nr)
        if rest:
            with tir.outer(g.batch, self.threads) as image:
                self._tile_block(image, g.tiles - rest, rest)

    def _tile_block(self, image: Any, tile: Any, nr: int) -> None:
        from tvm.tirx.script import builder as tb

        last = len(self.blocks) - 2
        middle = (1, last) if last > 1 else (1, 1)
        with tb.serial(self.blocks[1]) as run:
            self._run(run, image, tile, nr, first=True, last=last == 0)
        if middle[1] > middle[0]:
            with tb.serial(self.blocks[middle[1]] - self.blocks[middle[0]]) as run:
                self._run(self.blocks[middle[0]] + run, image, tile, nr, first=False, last=False)
        if last > 0:
            with tb.serial(self.blocks[last + 1] - self.blocks[last]) as run:
                self._run(self.blocks[last] + run, image, tile, nr, first=False, last=True)

    def _run(self, run: Any, image: Any, tile: Any, nr: int, *, first: bool, last: bool) -> None:
        from sparsetvm.schedules.x86 import tir
        from tvm import tirx
        from tvm.tirx.script import builder as tb

        g, lanes = self.geometry, self.geometry.lanes
        x0 = tb.Bind(g.x0 + image * g.x_batch + tile * g.x_tile)
        y0 = tb.Bind(g.y0 + image * g.y_batch + tile * g.y_tile)
        length = tb.Bind(self.runs[run * 4 + 3])
        with tb.serial(self.runs[run * 4 + 1]) as i:
            row = tb.Bind(self.rows[self.runs[run * 4] + i])
            p0 = tb.Bind(self.runs[run * 4 + 2] + i * length)
            acc = tir.Registers(self.strip * nr, lanes)
            # Registers, rows of the strip, vectors: sum j is of row j // nr, vector j % nr.
            sums = [(j, j // nr, j % nr) for j in range(self.strip * nr)]
            at = [y0 + (row + r) * g.row_stride + n * g.y_tile for _, r, n in sums]
            for j, r, _ in sums:
                acc[j] = tir.splat(self.bias[row + r], lanes) if first else tir.vload(self.y, at[j], lanes)
            self._entries(acc, x0, p0, length, nr)
            later = self.rows[tirx.min(self.runs[run * 4] + i + self.rows_ahead, self.packed.arrays[2].size - 1)]
            for r in range(self.strip):
                if first:
                    self._prefetch(self.y, y0 + (later + r) * g.row_stride, g.y_tile, nr)
                if last and self.r is not None:
                    r0 = g.r0 + image * g.r_batch + tile * g.r_tile
                    self._prefetch(self.r, r0 + (later + r) * g.residual_stride, g.r_tile, nr)
            for j, r, n in sums:
                value = acc[j]
                if last:
                    mask = self.mask[tile + n] if g.mask is not None else None
                    at_r = g.r0 + image * g.r_batch + (tile + n) * g.r_tile + (row + r) * g.residual_stride
                    value = finish_vector(value, self.r, at_r, self.workload.epilogue, g, mask)
                tir.vstore(self.y, value, at[j], lanes)

    def _prefetch(self, buffer: Any, at: Any, step: int, nr: int) -> None:
        """Bring `nr` vectors that are `step` apart into L2, when Y is large."""
        from sparsetvm.schedules.x86 import tir

        g = self.geometry
        if 4 * g.lanes * g.total_tiles * self.workload.m >= _FAR_BYTES:
            for offset in sorted({n * step // 16 * 16 if step == g.lanes else n * step for n in range(nr)}):
                tir.prefetch(buffer, at + offset)

    def _entries(self, acc: Any, x0: Any, p0: Any, length: Any, nr: int) -> None:
        from sparsetvm.schedules.x86 import tir
        from tvm import tirx
        from tvm.tirx.script import builder as tb

        g, lanes = self.geometry, self.geometry.lanes

        def step(p: Any) -> None:
            column = tb.Bind(x0 + self.offsets[p])
            x = [tir.vload(self.x, column + n * g.x_tile, lanes) for n in range(nr)]
            if self.strip > 1:
                x = [tir.let(vector) for vector in x]
            for r in range(self.strip):
                value = tir.let(tir.splat(self.values[p * self.strip + r], lanes))
                for n in range(nr):
                    acc[r * nr + n] = acc[r * nr + n] + value * x[n]

        whole = tirx.floordiv(length, self.unroll)
        with tb.serial(whole) as q:
            for u in range(self.unroll):
                step(p0 + q * self.unroll + u)
        if self.unroll > 1:
            with tb.serial(length - whole * self.unroll) as q:
                step(p0 + whole * self.unroll + q)


def _rows(config: Config) -> int:
    """Rows of a strip; only the spaces of patterns with strips have this knob."""
    return config.int("rows") if "rows" in dict(config.knobs) else 1


def _most_vectors(rows: int, target: Target) -> int:
    """Vectors of X up to which rows x vectors sums, the vectors and a weight fit into the registers; at least 1."""
    return max(1, (target.registers - 1) // (rows + 1)) if rows > 1 else 8
