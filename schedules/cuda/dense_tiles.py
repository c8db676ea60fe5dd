"""What dense templates on flat positions share: tiles of blocks, packed weights, the launch (see dense_block.cuh)."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sparsetvm.schedules.base import Packed, Template
from sparsetvm.schedules.cuda.epilogue import bias_array, epilogue_defines
from sparsetvm.schedules.cuda.geometry import FlatGeometry, flat_geometry
from sparsetvm.schedules.cuda.launch import Launch

from sparsetvm.core.config import Config
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload
from sparsetvm.space.knobs import Choice, Ordered
from sparsetvm.space.space import Space

_SPLITS = (1, 2, 4, 8)


@dataclass(frozen=True)
class Tiles:
    """The tile of a block, that of what multiplies it (a thread, a warp), and the shares of K.

    threads: of a block. row_x: floats from row to row of X in shared memory.
    """

    bm: int
    bn: int
    bk: int
    tm: int
    tn: int
    slices: int
    stages: int
    split: int
    threads: int = 0
    row_x: int = 0

    @staticmethod
    def of(config: Config) -> Tiles:
        """The tiles that the knobs say; the sizes that follow from them are still 0."""
        bm, bn, bk, tm, tn, slices, stages = (int(size) for size in config.str("shape").replace("x", "-").split("-"))
        return Tiles(bm, bn, bk, tm, tn, slices, stages, config.int("split"))

    def sized(self, threads: int, row_x: int) -> Tiles:
        return dataclasses.replace(self, threads=threads, row_x=row_x)

    @property
    def shared(self) -> int:
        """Bytes of shared memory: the stages (tiles of W and X, taps), later the parts of the sums."""
        parts = self.slices * self.bm * self.bn if self.slices * self.split > 1 else 0
        return 4 * max(self.stages * self.bk * (self.bm + self.row_x + 1), parts)

    def blocks(self, g: FlatGeometry) -> int:
        """Blocks of a launch, those that share a K included."""
        return len(g.taps) * -(-g.rows_per_group // self.bm) * -(-g.positions // self.bn) * g.batch * self.split


class TileTemplate(Template):
    """A dense template whose knobs are such tiles; its kernel stands in the .cu file of the template's name."""

    dense = True
    shapes: Sequence[str]  # "BM x BN x BK - tile of what multiplies - slices - stages"

    @abc.abstractmethod
    def tiles(self, config: Config) -> Tiles:
        """The tiles of a config, with all their sizes."""

    @abc.abstractmethod
    def cost(self, tiles: Tiles, workload: Workload, target: Target) -> float:
        """Expected cycles of the multiprocessor that has the most blocks."""

    def arrange(self, blocks: np.ndarray) -> np.ndarray:
        """Tiles of the weight (..., BK, BM) in the kernel's order."""
        return blocks

    def space(self, workload: Workload, target: Target) -> Space:
        return Space(self.name, (Choice("shape", tuple(self.shapes)), Ordered("split", _SPLITS)))

    def default(self, workload: Workload, target: Target) -> Config:
        """The config with the fewest expected cycles."""
        return self.smallest_estimate(workload, target)

    def estimate(self, workload: Workload, config: Config, target: Target) -> float:
        return self.cost(self.tiles(config), workload, target)

    def pack(
        self, weight: np.ndarray, bias: np.ndarray | None, workload: Workload, config: Config, target: Target
    ) -> Packed:
        return _pack_tiles(weight, bias, workload, self.tiles(config), self.arrange)

    def kernel(self, workload: Workload, config: Config, packed: Packed, target: Target, symbol: str) -> Any:
        return _tiled_launch(self.name.partition(".")[2], workload, self.tiles(config))


def _pack_tiles(
    weight: np.ndarray, bias: np.ndarray | None, workload: Workload, tiles: Tiles,
    arrange: Callable[[np.ndarray], np.ndarray],
) -> Packed:  # fmt: skip
    """Weight, bias and taps as dense_block.cuh reads them. arrange: puts tiles (..., BK, BM) in the kernel's order."""
    g = flat_geometry(workload)
    bm, bk = tiles.bm, tiles.bk
    groups, rows, k = len(g.taps), g.rows_per_group, workload.k
    m_tiles, k_tiles = -(-rows // bm), -(-k // bk)
    padded = np.zeros((groups, m_tiles * bm, k_tiles * bk), np.float32)
    padded[:, :rows, :k] = weight.reshape(groups, rows, k)
    blocks = arrange(padded.reshape(groups, m_tiles, bm, k_tiles, bk).transpose(0, 1, 3, 4, 2))
    taps = np.full(k_tiles * bk, g.taps[0][0], np.int32)  # columns past K read what column 0 reads
    taps[:k] = g.taps[0]
    return Packed((np.ascontiguousarray(blocks).ravel(), bias_array(bias, workload.m), taps))


def _tiled_launch(entry: str, workload: Workload, tiles: Tiles) -> Launch:
    """The launch of the kernel `entry`, which stands in the .cu file of that name and includes dense_block.cuh."""
    g = flat_geometry(workload)
    groups, m_tiles = len(g.taps), -(-g.rows_per_group // tiles.bm)
    defines = (
        *(("SP_BM", tiles.bm), ("SP_BN", tiles.bn), ("SP_BK", tiles.bk), ("SP_TM", tiles.tm), ("SP_TN", tiles.tn)),
        *(("SP_SLICES", tiles.slices), ("SP_STAGES", tiles.stages), ("SP_CLUSTER", tiles.split)),
        *(("SP_ROWS", int(g.x_row != 0)), *epilogue_defines(workload.epilogue)),
    )
    return Launch(
        f"{entry}.cu",
        entry,
        defines,
        (groups * m_tiles * tiles.split, -(-g.positions // tiles.bn), g.batch),
        tiles.threads,
        tiles.shared,
        tiles.split,
        _scalars(g, workload.k, m_tiles, -(-workload.k // tiles.bk)),
        overlaps=True,
    )


def _scalars(g: FlatGeometry, k: int, m_tiles: int, k_tiles: int) -> tuple[int, ...]:
    """The scalars of dense_block.cuh."""
    group_step = int(g.taps[1][0] - g.taps[0][0]) if len(g.taps) > 1 else 0
    head, tail, stop = (g.borders[0][1], *g.borders[1]) if g.borders else (0, 0, 0)
    return (
        *(g.rows_per_group, m_tiles, group_step, k, k_tiles, g.positions, g.valid, g.pitch, g.width),
        *(g.x0, g.x_batch, g.x_row, g.y0, g.y_batch, g.y_row, g.r0, g.r_batch, g.r_row, head, tail, stop),
    )
