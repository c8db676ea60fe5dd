"""Dense product and convolution on flat positions (implicit GEMM): the baseline that always competes.

    block: BM rows x BN positions; for tile of BK columns (STAGES of them in flight, cp.async):
        thread: for k: TM + TN floats from shared memory, TM * TN FMAs
    K is split over a cluster of blocks and over slices of warps; the parts are added in fixed order in shared memory

Requires: layouts that `supports_flat`; weights packed [M / BM][K / BK][BK][BM] by dense_tiles.py. The tiles of threads
and warps, and the fragments loaded one step ahead, are those of CUTLASS's SIMT GEMM (Kerr et al., after Gray's maxas
SGEMM).
"""

from __future__ import annotations

from sparsetvm.schedules.cuda.dense_tiles import Tiles, TileTemplate
from sparsetvm.schedules.cuda.geometry import flat_geometry, supports_flat

from sparsetvm.core.config import Config
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload

# Tiles, as "BM x BN x BK - tile of a thread - slices - stages". Of 20 timed on an H200 over 36 layers of BERT, ResNet,
# MobileNet and square products, these hold one within 3 % of the fastest for every layer (0.1 % in the geometric mean);
# tiles with BK 8 or 32 x 64 and 32 x 128 outputs were never needed.
_SHAPES = (
    *("32x32x32-4x4-4-4", "32x32x32-8x4-4-4", "64x32x16-8x4-2-4", "64x32x32-8x4-4-3", "128x32x16-8x4-2-3"),
    *("64x64x16-8x4-1-4", "64x64x32-8x4-2-3", "64x64x16-8x8-1-4", "128x64x16-8x8-1-3", "64x128x16-8x8-1-3"),
    "128x128x16-8x8-1-3",
)
# By the size of a thread's tile: threads per multiprocessor that its registers allow (see dense.cu).
_RESIDENT = {64: 512, 32: 640, 16: 768}
# What follows was fitted by least squares to the 889 of 1673 times on an H200 that are of these tiles. Fitted without
# one layer (and those of equal size) at a time, the config that `_cost` picks for it is 2 % slower than the fastest
# timed in the geometric mean, 10 % at worst; the form of the model, the tiles and _SPREAD were chosen with all layers
# in view. By the size of a thread's tile: share of the FMA peak that its reads of shared memory allow.
_EFFICIENCY = {64: 0.88, 32: 0.81, 16: 0.71}
_STEP = 180  # cycles of a step of BK that are not hidden: barrier, first fragments
_COPY = 0.18  # cycles for a 4-byte copy of X (16-byte copies cost nothing that shows)
_FINISH = 55  # cycles per output of a thread, from the last sum to the next block's first
_PARTS = 33  # bytes of parts of sums that a multiprocessor exchanges in a cycle
_CLUSTER = 250  # cycles of two barriers of a cluster
_PART = 155  # cycles for each further part that an output adds from shared memory of the cluster
_MOST_SPLIT = 6  # blocks per multiprocessor up to which K was split in what was timed
_SPREAD = 10 / 11  # of the multiprocessors: what clusters of 4 and more reach at once, since GPCs differ in size


class Dense(TileTemplate):
    """Template cuda.dense."""

    name = "cuda.dense"
    version = 2
    shapes = _SHAPES

    def matches(self, workload: Workload, target: Target) -> bool:
        return target.kind == "cuda" and supports_flat(workload)

    def tiles(self, config: Config) -> Tiles:
        tiles = Tiles.of(config)
        threads = tiles.bm * tiles.bn // (tiles.tm * tiles.tn) * tiles.slices
        return tiles.sized(threads=threads, row_x=tiles.bn)

    def cost(self, tiles: Tiles, workload: Workload, target: Target) -> float:
        """Blocks run in waves of as many as fit a multiprocessor; latencies and exchanged parts come on top."""
        g = flat_geometry(workload)
        blocks = tiles.blocks(g)
        if tiles.split > 1 and blocks > _MOST_SPLIT * target.sms:
            return float("inf")
        share = -(-blocks // max(1, int(target.sms * (_SPREAD if tiles.split >= 4 else 1))))
        resident = max(1, min(_RESIDENT[tiles.tm * tiles.tn] // tiles.threads, target.shared // tiles.shared))
        area, steps = tiles.bm * tiles.bn, -(-workload.k // (tiles.bk * tiles.split))
        column = area / (128 * _EFFICIENCY[tiles.tm * tiles.tn]) + (0 if g.x_row else _COPY * tiles.bn)
        parts = tiles.slices * tiles.split
        alone = steps * _STEP + _FINISH * tiles.tm * tiles.tn + (_CLUSTER + _PART * parts if tiles.split > 1 else 0)
        exchange = 4 * area * tiles.slices / _PARTS if parts > 1 else 0

        def wave(together: int) -> float:
            if not together:
                return 0.0
            idle = max(1.0, 4 * 32 / (together * tiles.threads))  # schedulers without a warp
            return alone + together * (steps * tiles.bk * column * idle + exchange)

        return share // resident * wave(resident) + wave(share % resident)
