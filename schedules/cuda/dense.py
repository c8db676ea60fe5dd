"""Dense product and convolution on flat positions (implicit GEMM): the baseline that always competes.

    block: BM rows x BN positions; for tile of BK columns (STAGES of them in flight, cp.async):
        thread: for k: TM + TN floats from shared memory, TM * TN FMAs
    K is split over a cluster of blocks and over slices of warps; the parts are added in fixed order in shared memory

Requires: layouts that `supports_flat`; weights packed [M / BM][K / BK][BK][BM]. The tiles of threads and warps, and the
fragments loaded one step ahead, are those of CUTLASS's SIMT GEMM (Kerr et al., after Gray's maxas SGEMM).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from sparsetvm.schedules.base import Packed, Template
from sparsetvm.schedules.cuda.epilogue import bias_array, epilogue_defines
from sparsetvm.schedules.cuda.geometry import FlatGeometry, flat_geometry, supports_flat
from sparsetvm.schedules.cuda.launch import Launch

from sparsetvm.core.config import Config
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload
from sparsetvm.space.knobs import Choice, Ordered
from sparsetvm.space.space import Space

# Tiles, as "BM x BN x BK - tile of a thread - slices - stages". Of 20 timed on an H200 over 36 layers of BERT, ResNet,
# MobileNet and square products, these hold one within 3 % of the fastest for every layer (0.1 % in the geometric mean);
# tiles with BK 8 or 32 x 64 and 32 x 128 outputs were never needed.
_SHAPES = (
    *("32x32x32-4x4-4-4", "32x32x32-8x4-4-4", "64x32x16-8x4-2-4", "64x32x32-8x4-4-3", "128x32x16-8x4-2-3"),
    *("64x64x16-8x4-1-4", "64x64x32-8x4-2-3", "64x64x16-8x8-1-4", "128x64x16-8x8-1-3", "64x128x16-8x8-1-3"),
    "128x128x16-8x8-1-3",
)
_SPLITS = (1, 2, 4, 8)
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


class Dense(Template):
    """Template cuda.dense."""

    name = "cuda.dense"
    version = 2
    dense = True

    def matches(self, workload: Workload, target: Target) -> bool:
        return target.kind == "cuda" and supports_flat(workload)

    def space(self, workload: Workload, target: Target) -> Space:
        return Space(self.name, (Choice("shape", _SHAPES), Ordered("split", _SPLITS)))

    def default(self, workload: Workload, target: Target) -> Config:
        """The config that takes the fewest cycles by a model of waves of blocks, latencies and exchanged parts."""
        configs = list(self.space(workload, target))
        costs = [_cost(_Shape.of(config), workload, target) for config in configs]
        return configs[costs.index(min(costs))]

    def estimate(self, workload: Workload, config: Config, target: Target) -> float:
        return _cost(_Shape.of(config), workload, target)

    def pack(
        self, weight: np.ndarray, bias: np.ndarray | None, workload: Workload, config: Config, target: Target
    ) -> Packed:
        g, shape = flat_geometry(workload), _Shape.of(config)
        bm, bk = shape.bm, shape.bk
        groups, rows, k = len(g.taps), g.rows_per_group, workload.k
        m_tiles, k_tiles = -(-rows // bm), -(-k // bk)
        padded = np.zeros((groups, m_tiles * bm, k_tiles * bk), np.float32)
        padded[:, :rows, :k] = weight.reshape(groups, rows, k)
        blocks = padded.reshape(groups, m_tiles, bm, k_tiles, bk).transpose(0, 1, 3, 4, 2)
        taps = np.full(k_tiles * bk, g.taps[0][0], np.int32)  # columns past K read what column 0 reads
        taps[:k] = g.taps[0]
        return Packed((np.ascontiguousarray(blocks).ravel(), bias_array(bias, workload.m), taps))

    def kernel(self, workload: Workload, config: Config, packed: Packed, target: Target, symbol: str) -> Any:
        g, shape = flat_geometry(workload), _Shape.of(config)
        groups, m_tiles = len(g.taps), -(-g.rows_per_group // shape.bm)
        defines = (
            *(("SP_BM", shape.bm), ("SP_BN", shape.bn), ("SP_BK", shape.bk), ("SP_TM", shape.tm), ("SP_TN", shape.tn)),
            *(("SP_SLICES", shape.slices), ("SP_STAGES", shape.stages), ("SP_CLUSTER", shape.split)),
            *(("SP_ROWS", int(g.x_row != 0)), *epilogue_defines(workload.epilogue)),
        )
        return Launch(
            "dense.cu",
            "dense",
            defines,
            (groups * m_tiles * shape.split, -(-g.positions // shape.bn), g.batch),
            shape.threads,
            shape.shared,
            shape.split,
            _scalars(g, workload.k, m_tiles, -(-workload.k // shape.bk)),
            overlaps=True,
        )


@dataclass(frozen=True)
class _Shape:
    """The tile of a block, its threads and its shares of K."""

    bm: int
    bn: int
    bk: int
    tm: int
    tn: int
    slices: int
    stages: int
    split: int

    @staticmethod
    def of(config: Config) -> _Shape:
        bm, bn, bk, tm, tn, slices, stages = (int(size) for size in config.str("shape").replace("x", "-").split("-"))
        return _Shape(bm, bn, bk, tm, tn, slices, stages, config.int("split"))

    @property
    def threads(self) -> int:
        return self.bm * self.bn // (self.tm * self.tn) * self.slices

    @property
    def shared(self) -> int:
        """Bytes of shared memory: the stages (tiles of W and X, taps), later the parts of the sums."""
        parts = self.slices * self.bm * self.bn if self.slices * self.split > 1 else 0
        return 4 * max(self.stages * self.bk * (self.bm + self.bn + 1), parts)


def _cost(shape: _Shape, workload: Workload, target: Target) -> float:
    """Estimated cycles of the multiprocessor that has the most blocks, which run in waves of as many as fit it."""
    g = flat_geometry(workload)
    blocks = len(g.taps) * -(-g.rows_per_group // shape.bm) * -(-g.positions // shape.bn) * g.batch * shape.split
    if shape.split > 1 and blocks > _MOST_SPLIT * target.sms:
        return float("inf")
    share = -(-blocks // max(1, int(target.sms * (_SPREAD if shape.split >= 4 else 1))))
    resident = max(1, min(_RESIDENT[shape.tm * shape.tn] // shape.threads, target.shared // shape.shared))
    area, steps = shape.bm * shape.bn, -(-workload.k // (shape.bk * shape.split))
    column = area / (128 * _EFFICIENCY[shape.tm * shape.tn]) + (0 if g.x_row else _COPY * shape.bn)
    parts = shape.slices * shape.split
    alone = steps * _STEP + _FINISH * shape.tm * shape.tn + (_CLUSTER + _PART * parts if shape.split > 1 else 0)
    exchange = 4 * area * shape.slices / _PARTS if parts > 1 else 0

    def wave(together: int) -> float:
        if not together:
            return 0.0
        idle = max(1.0, 4 * 32 / (together * shape.threads))  # schedulers without a warp
        return alone + together * (steps * shape.bk * column * idle + exchange)

    return share // resident * wave(resident) + wave(share % resident)


def _scalars(g: FlatGeometry, k: int, m_tiles: int, k_tiles: int) -> tuple[int, ...]:
    """The scalars of dense.cu."""
    group_step = int(g.taps[1][0] - g.taps[0][0]) if len(g.taps) > 1 else 0
    head, tail, stop = (g.borders[0][1], *g.borders[1]) if g.borders else (0, 0, 0)
    return (
        *(g.rows_per_group, m_tiles, group_step, k, k_tiles, g.positions, g.valid, g.pitch, g.width),
        *(g.x0, g.x_batch, g.x_row, g.y0, g.y_batch, g.y_row, g.r0, g.r_batch, g.r_row, head, tail, stop),
    )
