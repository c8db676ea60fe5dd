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

_MAX_THREADS = 512  # of a block: more would leave a thread too few registers
_STAGES = 4  # of default configs
# By the size of a thread's tile: threads per multiprocessor that its registers allow (see dense.cu), share of the FMA
# peak that its reads of shared memory allow.
_RESIDENT = {64: 512, 32: 768, 16: 1024}
_EFFICIENCY = {64: 0.9, 32: 0.75, 16: 0.5}
# (bm, bn, bk, tile, slices) that defaults are chosen from.
_CANDIDATES = (
    *((128, 128, 8, "8x8", 1), (128, 64, 16, "8x8", 1), (64, 128, 16, "8x8", 1), (64, 64, 16, "8x8", 1)),
    *((64, 64, 16, "8x8", 2), (64, 64, 16, "8x4", 1), (64, 64, 16, "8x4", 2), (64, 64, 32, "8x4", 4)),
    *((32, 128, 16, "8x8", 2), (32, 64, 32, "8x4", 4), (64, 32, 32, "8x4", 4), (32, 32, 32, "8x4", 4)),
)


class Dense(Template):
    """Template cuda.dense."""

    name = "cuda.dense"
    version = 1
    dense = True

    def matches(self, workload: Workload, target: Target) -> bool:
        return target.kind == "cuda" and supports_flat(workload)

    def space(self, workload: Workload, target: Target) -> Space:
        sizes = (32, 64, 128)
        return Space(
            self.name,
            (
                *(Ordered("bm", sizes), Ordered("bn", sizes), Ordered("bk", (8, 16, 32))),
                *(Choice("tile", ("4x4", "4x8", "8x4", "8x8")), Ordered("split", (1, 2, 4, 8))),
                *(Ordered("slices", (1, 2, 4)), Ordered("stages", (2, 3, 4))),
            ),
        )

    def default(self, workload: Workload, target: Target) -> Config:
        """The config that takes the fewest cycles by a coarse model of waves, latencies and reads of shared memory."""
        g = flat_geometry(workload)
        costs: list[tuple[float, int, Config]] = []
        for bm, bn, bk, tile, slices in _CANDIDATES:
            blocks = len(g.taps) * -(-g.rows_per_group // bm) * -(-g.positions // bn) * g.batch
            for split in (1, 2, 4, 8):
                config = Config.of(
                    self.name, bm=bm, bn=bn, bk=bk, tile=tile, split=split, slices=slices, stages=_STAGES
                )
                costs.append((_cost(_Shape.of(config), blocks, workload.k, target), len(costs), config))
        return min(costs)[2]

    def pack(
        self, weight: np.ndarray, bias: np.ndarray | None, workload: Workload, config: Config, target: Target
    ) -> Packed:
        g, bm, bk = flat_geometry(workload), config.int("bm"), config.int("bk")
        groups, rows, k = len(g.taps), g.rows_per_group, workload.k
        m_tiles, k_tiles = -(-rows // bm), -(-k // bk)
        padded = np.zeros((groups, m_tiles * bm, k_tiles * bk), np.float32)
        padded[:, :rows, :k] = weight.reshape(groups, rows, k)
        blocks = padded.reshape(groups, m_tiles, bm, k_tiles, bk).transpose(0, 1, 3, 4, 2)
        taps = np.full(k_tiles * bk, g.taps[0][0], np.int32)  # columns past K read what column 0 reads
        taps[:k] = g.taps[0]
        return Packed((np.ascontiguousarray(blocks).ravel(), bias_array(bias, workload.m), taps))

    def kernel(self, workload: Workload, config: Config, packed: Packed, target: Target, symbol: str) -> Any:
        g, shape, stages = flat_geometry(workload), _Shape.of(config), config.int("stages")
        groups, m_tiles = len(g.taps), -(-g.rows_per_group // shape.bm)
        defines = (
            *(("SP_BM", shape.bm), ("SP_BN", shape.bn), ("SP_BK", shape.bk), ("SP_TM", shape.tm), ("SP_TN", shape.tn)),
            *(("SP_SLICES", shape.slices), ("SP_STAGES", stages), ("SP_CLUSTER", shape.split)),
            *(("SP_ROWS", int(g.x_row != 0)), *epilogue_defines(workload.epilogue)),
        )
        return Launch(
            "dense.cu",
            "dense",
            defines,
            (groups * m_tiles * shape.split, -(-g.positions // shape.bn), g.batch),
            shape.threads,
            shape.shared(stages),
            shape.split,
            _scalars(g, workload.k, m_tiles, -(-workload.k // shape.bk)),
        )


@dataclass(frozen=True)
class _Shape:
    """The tile of a block, its threads and its shares of K, as far as they fit together."""

    bm: int
    bn: int
    bk: int
    tm: int
    tn: int
    split: int
    slices: int

    @staticmethod
    def of(config: Config) -> _Shape:
        """The shape of a config: 32 positions hold no wider thread tile than 4, and blocks have at most 512 threads."""
        bm, bn, bk = config.int("bm"), config.int("bn"), config.int("bk")
        tm, tn = (int(size) for size in config.str("tile").split("x"))
        tn = min(tn, bn // 8)
        if bm * bn > _MAX_THREADS * tm * tn:
            tm = 8
        most = _MAX_THREADS if tm * tn < 64 else _MAX_THREADS // 2
        slices = min(config.int("slices"), bk // 4, max(1, most * tm * tn // (bm * bn)))
        return _Shape(bm, bn, bk, tm, tn, config.int("split"), slices)

    @property
    def threads(self) -> int:
        return self.bm * self.bn // (self.tm * self.tn) * self.slices

    @property
    def stage(self) -> int:
        """Words of shared memory of one stage: tiles of W and X, taps."""
        return self.bk * (self.bm + self.bn + 1)

    def shared(self, stages: int) -> int:
        """Bytes of shared memory: the stages, later the parts of the sums."""
        parts = self.slices * self.bm * self.bn if self.slices * self.split > 1 else 0
        return 4 * max(stages * self.stage, parts)


def _cost(shape: _Shape, blocks: int, k: int, target: Target) -> float:
    """Estimated cycles of a multiprocessor for its share of `blocks` row and position tiles.

    128 FMAs per cycle where enough warps hide latencies and the tile of a thread saves reads of shared memory; 40 bytes
    per cycle from L2, a third of which is not hidden; about 1500 cycles until the first tile is there, as many and more
    for adding parts over a cluster.
    """
    share = -(-blocks * shape.split // max(target.sms, 1))
    resident = max(1, min(_RESIDENT[shape.tm * shape.tn] // shape.threads, target.shared // shape.shared(_STAGES)))
    warps = min(share, resident) * shape.threads / 32
    rate = 128 * _EFFICIENCY[shape.tm * shape.tn] * min(1.0, warps / 12)
    depth = -(-k // (shape.split * shape.bk)) * shape.bk
    reads = 4 * (shape.bm + shape.bn) / 40 / 3
    parts = 0 if shape.split * shape.slices == 1 else 700 if shape.split == 1 else 1500 + 250 * shape.split
    return share * (shape.bm * shape.bn / rate + reads) * depth + -(-share // resident) * (1500 + parts)


def _scalars(g: FlatGeometry, k: int, m_tiles: int, k_tiles: int) -> tuple[int, ...]:
    """The scalars of dense.cu."""
    group_step = int(g.taps[1][0] - g.taps[0][0]) if len(g.taps) > 1 else 0
    head, tail, stop = (g.borders[0][1], *g.borders[1]) if g.borders else (0, 0, 0)
    return (
        *(g.rows_per_group, m_tiles, group_step, k, k_tiles, g.positions, g.valid, g.pitch, g.width),
        *(g.x0, g.x_batch, g.x_row, g.y0, g.y_batch, g.y_row, g.r0, g.r_batch, g.r_row, head, tail, stop),
    )
