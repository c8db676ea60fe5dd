"""SpMM and sparse convolution, pattern in data, rows of W read against X in L1: few positions, long K.

    block: `rows` rows x `nt` positions x 1 / `parts` of K (a cluster has all of K):
        warp: for group of rows of like length:       # nt / c lanes a row
            for batch: `unroll` loads of X in flight, c FMAs each; sums to shared memory
    pieces of a row are added in the order of K

Requires: layouts that `supports_flat`. Convolutions with taps off 16 bytes load single floats.

X is read where it lies (ld.global.nc), so nothing waits for a tile; K is split so that the X of a block stays in L1.
Bound by the 128 bytes per cycle that L1 delivers: nnz * nt / 32 cycles on each multiprocessor for its non-zeros, an
eighth more for entries; and by what crosses from L2: rows * K split evenly over multiprocessors make X, entries and
partial sums about 0.3 MB each at 4096 x 4096, 90 %, 32 positions, where whole rows of K would make it 0.6 MB.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from sparsetvm.schedules.base import Packed, Template
from sparsetvm.schedules.cuda.epilogue import bias_array, epilogue_defines
from sparsetvm.schedules.cuda.geometry import FlatGeometry, flat_geometry, supports_flat
from sparsetvm.schedules.cuda.launch import Launch
from sparsetvm.schedules.cuda.spmm_data import SpmmData
from sparsetvm.schedules.cuda.spmm_data_model import CLUSTERED

from sparsetvm.core.config import Config
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload
from sparsetvm.formats.row_groups import Dealing, pack_row_groups
from sparsetvm.space.knobs import Choice, Ordered
from sparsetvm.space.space import Space

_FEWEST_POSITIONS = 16
_MOST_POSITIONS = 784  # of a default
_RING = 2048  # bytes of a warp's ring of entries
_L1 = 256 << 10  # bytes of L1 and shared memory together
_MOST_ROWS = 320  # of a tile
_PIECES = 96 << 10  # bytes of partial sums that leave L1 useful
_NORM = 1.587


class SpmmRows(Template):
    """Template cuda.spmm_rows."""

    name = "cuda.spmm_rows"
    version = 2

    def matches(self, workload: Workload, target: Target) -> bool:
        if target.kind != "cuda" or workload.pattern.kind == "dense" or not workload.nnz or not supports_flat(workload):
            return False
        g = flat_geometry(workload)
        if 4 * int(max(t.max() for t in g.taps) - min(t.min() for t in g.taps)) >= 1 << 32:
            return False
        # Too few positions for a warp's lanes, or taps that force single floats: only where nothing better can.
        competes = g.positions >= _FEWEST_POSITIONS and g.x_row != 0
        return competes or not SpmmData().matches(workload, target)

    def preferred(self, workload: Workload, target: Target) -> bool:
        """The estimate was never compared with measurements of larger layers."""
        g = flat_geometry(workload)
        return g.positions * g.batch <= _MOST_POSITIONS

    def space(self, workload: Workload, target: Target) -> Space:
        return Space(
            self.name,
            (
                # Measured on an H200: other values are not within a tenth of the best anywhere, or win nothing.
                *(Ordered("nt", (32, 64, 128)), Ordered("c", (4,)), Ordered("unroll", (4, 8))),
                # rows 0: as many as let all blocks run at once.
                *(Ordered("rows", (0, 32, 64, 128)), Ordered("warps", (16, 32))),
                *(Ordered("parts", (1, 2, 4, 8)), Ordered("slices", (1,))),
                *(Choice("x", ("rotated", "shared")), Choice("entries", ("direct", "ring"))),
            ),
        )

    def default(self, workload: Workload, target: Target) -> Config:
        """The config with the smallest estimate (of equal ones the first)."""
        return min(self.space(workload, target), key=lambda c: _cost(_Shape.of(c, workload, target), workload, target))

    def estimate(self, workload: Workload, config: Config, target: Target) -> float:
        return _cost(_Shape.of(config, workload, target), workload, target)

    def pack(
        self, weight: np.ndarray, bias: np.ndarray | None, workload: Workload, config: Config, target: Target
    ) -> Packed:
        g, shape = flat_geometry(workload), _Shape.of(config, workload, target)
        offsets = 4 * (np.stack(g.taps) - min(t.min() for t in g.taps))
        if shape.shared_x:
            offsets = 4 * shape.nt * (np.arange(workload.k)[None] % shape.deal.part_columns(workload.k))
        packed = pack_row_groups(weight, offsets, shape.deal)
        return Packed((packed.heads, packed.groups, packed.entries, packed.rows, bias_array(bias, workload.m)))

    def kernel(self, workload: Workload, config: Config, packed: Packed, target: Target, symbol: str) -> Any:
        g, shape = flat_geometry(workload), _Shape.of(config, workload, target)
        deal, column_tiles = shape.deal, -(-g.positions // shape.nt)
        defines = (
            *(("SP_NT", shape.nt), ("SP_C", shape.c), ("SP_WARPS", deal.warps), ("SP_U", deal.unroll)),
            *(("SP_SLICES", deal.slices), ("SP_CLUSTER", deal.parts), ("SP_RESIDENT", shape.resident)),
            *(("SP_ALIGNED", int(g.x_row != 0)), ("SP_TILE", int(shape.shared_x)), ("SP_RING", int(shape.ring))),
            *epilogue_defines(workload.epilogue),
        )
        return Launch(
            "spmm_rows.cu",
            "spmm_rows",
            defines,
            (deal.parts * column_tiles * g.batch, -(-workload.m // deal.rows), 1),
            32 * deal.warps,
            shape.shared(workload.k),
            deal.parts,
            _scalars(g, workload.k, column_tiles, deal),
            overlaps=True,
        )


@dataclass(frozen=True)
class _Shape:
    """The knobs of a config as far as they fit together and into the target."""

    nt: int
    c: int
    deal: Dealing
    shared_x: bool
    ring: bool

    @staticmethod
    def of(config: Config, workload: Workload, target: Target) -> _Shape:
        """The shape of a config.

        A row has 4 to 32 lanes; 32 warps leave a thread 64 registers, hence 16 floats of X in flight; partial sums have
        at most 96 KB: tiles have fewer rows then. X that does not fit into shared memory is read through L1.
        """
        g = flat_geometry(workload)
        nt, warps = config.int("nt"), config.int("warps")
        c = min(max(config.int("c"), nt // 32), nt // 4)
        unroll = max(2, min(config.int("unroll"), (16 if warps == 32 else 32) // c))
        parts, slices = config.int("parts"), config.int("slices")
        columns = -(-g.positions // nt) * g.batch
        rows = config.int("rows") or _even_rows(workload.m, columns, _clusters(parts, target))
        rows = min(rows, -(-workload.m // 4) * 4)
        while parts * slices > 1 and slices * rows * nt * 4 > _PIECES:
            rows = -(-rows // 8) * 4
        deal = Dealing(rows, parts, slices, warps, 32 * c // nt, unroll, config.str("x") == "rotated")
        shape = _Shape(nt, c, deal, config.str("x") == "shared" and g.x_row != 0, config.str("entries") == "ring")
        if shape.shared(workload.k) > target.shared:
            return _Shape(nt, c, deal, False, shape.ring)
        return shape

    @property
    def resident(self) -> int:
        """Blocks of a multiprocessor that registers must allow."""
        return max(1, (32 if self.deal.unroll * self.c <= 16 else 16) // self.deal.warps)

    def shared(self, k: int) -> int:
        """Bytes of shared memory: rings of entries, X, partial sums, their barrier."""
        d = self.deal
        pieces = d.slices * d.parts * -(-d.rows // d.parts) * self.nt * 4 if d.slices * d.parts > 1 else 0
        barrier = 16 if d.parts > 1 else 0
        return d.warps * _RING * self.ring + d.part_columns(k) * self.nt * 4 * self.shared_x + pieces + barrier


def _clusters(parts: int, target: Target) -> int:
    """Clusters of `parts` blocks that run at once, one block a multiprocessor."""
    return max(1, int(target.sms * CLUSTERED.get(parts, 1.0)) // parts)


def _even_rows(m: int, columns: int, clusters: int) -> int:
    """Rows of a tile (a multiple of 4, at most _MOST_ROWS) with which the fewest rounds of `clusters` clusters do all
    tiles; columns: tiles of positions."""
    rounds = 1
    while True:
        rows = -(-m // max(1, clusters * rounds // columns))
        if rows <= _MOST_ROWS:
            return -(-rows // 4) * 4
        rounds += 1


def _cost(shape: _Shape, workload: Workload, target: Target) -> float:
    """Estimated cycles, fitted to 990 measurements of 15 products on an H200 (16 to 1024 positions, 512 to 4096
    squared; those with parts since blocks send their sums). What X costs that L1 does not hold, and the constant term,
    were then set by hand so that the choice between this template and cuda.spmm_data is best: the smaller of both
    estimates leads to a time 6 % above the fastest measured in the mean of those 15 products, 42 % at worst (512 x 512
    with 32 positions).

    Wavefronts of 128 bytes from L1 or shared memory, bytes from L2 (more of them where a part of X does not fit into
    L1) and a warp's chain of batches overlap partly: the terms are added as a norm close to their sum.
    """
    g, deal, nt = flat_geometry(workload), shape.deal, shape.nt
    blocks = deal.parts * -(-workload.m // deal.rows) * -(-g.positions // nt) * g.batch
    waves = -(-blocks // (deal.parts * _clusters(deal.parts, target)))
    row = workload.nnz / workload.m / deal.parts
    padded = row + 0.5 * math.sqrt(row) + deal.unroll / 2  # side by side with longer rows, filled up to batches
    rows = min(deal.rows, workload.m)
    pieces = deal.rows * nt * 4 if deal.parts > 1 else 0
    x = workload.k / deal.parts * nt * 4
    wavefronts = 1.53 * rows * padded * nt / 32
    # X that L1 does not hold comes from L2 more than once, even more so where warps are at different columns.
    again = (2.5 if deal.rotate else 2.0) if not shape.shared_x and x + pieces > 0.8 * _L1 else 1.0
    traffic = (x + rows * row * 8 + 2 * pieces) * again / 64
    turns = -(-deal.rows // (deal.group * deal.warps))
    chain = turns * (padded / deal.unroll * (191 if shape.ring else 284) + 30)
    step = float((wavefronts**_NORM + traffic**_NORM + chain**_NORM) ** (1 / _NORM))
    return waves * (step + 86 * math.log2(deal.parts)) + 3700


def _scalars(g: FlatGeometry, k: int, column_tiles: int, deal: Dealing) -> tuple[int, ...]:
    """The scalars of spmm_rows.cu."""
    before, after = g.border
    first = min(int(t.min()) for t in g.taps)
    return (
        *(column_tiles, deal.rows, k, deal.part_columns(k), g.x0 + first, g.x_batch, g.x_row),
        *(g.positions, g.valid, g.pitch, g.width, g.y0, g.y_batch, g.y_row, before, after, g.r0, g.r_batch, g.r_row),
    )
