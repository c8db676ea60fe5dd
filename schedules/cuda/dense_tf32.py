"""Dense product and convolution on tensor cores: factors rounded to TF32, sums in float32. Only where TF32 is allowed.

    block: BM rows x BN positions; for tile of BK columns (STAGES of them in flight, cp.async):
        warp: for 8 columns: TM x 8 of W and 8 x TN of X from shared memory, TM / 16 * TN / 8 instructions m16n8k8
    K is split over a cluster of blocks and over slices of warps; the parts are added in fixed order in shared memory

Requires: layouts that `supports_flat`, a workload with `tf32`; weights rounded on the host and packed
[M / BM][K / BK][BK / 8][BM / 16][32 lanes][4], in the order of the instruction's registers. Tiles are as in cuda.dense
(dense_tiles.py), but TM x TN is the tile of a warp.
"""

from __future__ import annotations

import numpy as np
from sparsetvm.schedules.cuda.dense_tiles import Tiles, TileTemplate
from sparsetvm.schedules.cuda.geometry import flat_geometry, supports_flat

from sparsetvm.core.arithmetic import round_to_tf32
from sparsetvm.core.config import Config
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload
from sparsetvm.space.knobs import Choice
from sparsetvm.space.space import Space

_SHAPES = (
    *("32x32x32-16x32-4-4", "64x32x32-32x32-4-3", "32x64x32-32x32-4-3", "64x64x32-32x32-1-3", "64x64x16-32x32-1-4"),
    *("64x64x32-32x32-2-3", "128x64x32-32x32-1-3", "64x128x32-32x32-1-3", "128x128x16-64x32-1-4"),
    *("128x128x32-64x32-1-3", "128x128x16-64x64-1-4"),
)
_PADDING = 8  # floats between rows of X in shared memory, so that no bank is read twice
# By the size of a warp's tile: threads per multiprocessor that its registers allow (see dense_tf32.cu).
_RESIDENT = {4096: 256, 2048: 512, 1024: 640, 512: 1024}
# What a multiprocessor does in a cycle by data sheets: multiply-adds of this instruction (0.6 of what Hopper's own
# reach), bytes from shared memory; and the share of both that is reached (tuned on an H200: 9.3 us at 1024 x 1024 and
# 128 columns, 28 us at 1024 columns, 52 us at 4096 x 4096 and 128 columns).
_PRODUCTS, _BYTES, _REACHED = 620, 128, 0.32
# As of cuda.dense: cycles of a step of BK besides, of two barriers of a cluster; bytes of parts exchanged in a cycle.
_STEP, _CLUSTER, _PARTS = 180, 250, 33
_MOST_SPLIT = 2  # blocks per multiprocessor up to which K is split


class DenseTf32(TileTemplate):
    """Template cuda.dense_tf32."""

    name = "cuda.dense_tf32"
    version = 1
    arithmetic = "tf32"
    shapes = _SHAPES

    def matches(self, workload: Workload, target: Target) -> bool:
        return target.kind == "cuda" and workload.tf32 and supports_flat(workload)

    def space(self, workload: Workload, target: Target) -> Space:
        _, split = super().space(workload, target).knobs
        most = {name: self.tiles(Config.of(self.name, shape=name, split=2)).shared for name in _SHAPES}
        return Space(self.name, (Choice("shape", tuple(n for n in _SHAPES if most[n] <= target.shared)), split))

    def tiles(self, config: Config) -> Tiles:
        tiles = Tiles.of(config)
        warps = tiles.bm * tiles.bn // (tiles.tm * tiles.tn) * tiles.slices
        return tiles.sized(threads=32 * warps, row_x=tiles.bn + _PADDING)

    def arrange(self, blocks: np.ndarray) -> np.ndarray:
        """Tiles (..., BK, BM) rounded, as (..., BK / 8, BM / 16, lanes, registers)."""
        *outer, bk, bm = blocks.shape
        at = len(outer)
        # Column 8 s + 4 h + t of row 16 i + 8 r + g is number 2 h + r of lane 4 g + t (PTX: fragments of m16n8k8).
        split = round_to_tf32(blocks).reshape(*outer, bk // 8, 2, 4, bm // 16, 2, 8)
        return split.transpose(*range(at), at, at + 3, at + 5, at + 2, at + 1, at + 4)

    def cost(self, tiles: Tiles, workload: Workload, target: Target) -> float:
        """Waves of as many blocks as fit a multiprocessor, each a chain of steps that share the tensor cores."""
        blocks = tiles.blocks(flat_geometry(workload))
        if tiles.split > 1 and blocks > _MOST_SPLIT * target.sms:
            return float("inf")
        share = -(-blocks // target.sms)
        resident = max(1, min(_RESIDENT[tiles.tm * tiles.tn] // tiles.threads, target.shared // tiles.shared))
        steps, area = -(-workload.k // (tiles.bk * tiles.split)), tiles.bm * tiles.bn
        fragments = 4 * (tiles.tm + tiles.tn) / (tiles.tm * tiles.tn)  # bytes for one multiply-add of a warp
        rate = _REACHED * min(_PRODUCTS, _BYTES / fragments)
        exchange = 4 * area * tiles.slices / _PARTS if tiles.slices * tiles.split > 1 else 0
        alone = steps * _STEP + (_CLUSTER if tiles.split > 1 else 0)
        return -(-share // resident) * alone + share * (steps * tiles.bk * area / rate + exchange)
