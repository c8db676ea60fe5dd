"""Product of large blocks on Hopper's own tensor core instructions, many positions: X and W by the copy engine.

    block: a panel of 64 or 128 rows x TN positions:
        a warp: for step of `run` columns that a row of the panel has (STAGES in flight): starts the copies of X and W
        two groups of four warps, 64 rows or half of the positions each: run / 16 instructions m64 x 64 to 256 x k16
    with few positions a cluster of blocks splits the steps of a panel, whose sums meet in shared memory

Requires: sm_90; a product with X in float16 (`HalfTiled`), a workload with `fp16`, blocks of 16 rows and more and of 32
columns or a multiple. Panels of lower blocks are larger than these, and hold the columns of several.
Weights rounded to float16 and packed by formats/wgmma_panels.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from sparsetvm.schedules.base import Packed
from sparsetvm.schedules.cuda.boxes import (
    BoxTemplate,
    box_launch,
    reads_boxes,
    ring_bytes,
    shape_sizes,
    split_clocks,
    split_share,
)
from sparsetvm.schedules.cuda.epilogue import bias_array
from sparsetvm.schedules.cuda.geometry import flat_geometry
from sparsetvm.schedules.cuda.panels import expected_steps

from sparsetvm.core.config import Config
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload
from sparsetvm.formats.panel_steps import STEP
from sparsetvm.formats.wgmma_panels import TILE_ROWS, wgmma_panels

# Rows of a panel x TN - columns of a step - stages - blocks of a multiprocessor - blocks that split the steps (1 where
# that is not named).
_SHAPES = (
    *("64x256-64-5-1", "64x256-32-5-2", "64x256-32-10-1", "64x512-32-6-1", "64x512-64-3-1", "128x256-64-4-1"),
    *("64x128-64-4-2", "64x128-32-8-2", "64x128-64-8-1-2", "64x128-32-16-1-2"),
)
_GROUPS = 2
_FEWEST_ROWS, _LEAST_RUN = 16, 2 * STEP


@dataclass(frozen=True)
class Rates:
    """What an estimate goes by. fixed, latency, step: clocks of a block beside its steps, of a copy (shared by stages),
    at least of a step. l2, port, sent, stored: bytes a clock and multiprocessor from L2 of all together, of one, to
    others of the cluster, to memory. products: multiply-adds a clock.
    """

    fixed: int
    l2: float
    port: float
    products: float
    stored: float
    latency: float
    step: float
    sent: float


# Fitted to 57 times on an H200 (2048 and 4096 squared, blocks of 32 x 32 and 64 x 64, 128 and 1024 positions), off by
# 10 % (rms).
_RATES = Rates(1500, 36.6, 97.9, 1460, 12, 3281, 478, 5.7)


class BlockWgmma(BoxTemplate):
    """Template cuda.block_wgmma."""

    name = "cuda.block_wgmma"
    version = 1
    shapes: tuple[str, ...] = _SHAPES
    every = False  # whether panels have all columns

    def matches(self, workload: Workload, target: Target) -> bool:
        pattern = workload.pattern
        large = pattern.kind == "block" and pattern.block[0] >= _FEWEST_ROWS and not pattern.block[1] % _LEAST_RUN
        return large and workload.nnz > 0 and reads_boxes(workload, target)

    def estimate(self, workload: Workload, config: Config, target: Target) -> float:
        mean, spread = expected_steps(workload, Shape.of(config).rows)
        columns, run = (mean + spread) * STEP, Shape.of(config).run
        if run > workload.pattern.block[1]:  # neighbouring blocks are read together when any row has one
            columns = workload.k * (1.0 - max(0.0, 1.0 - columns / workload.k) ** (run / workload.pattern.block[1]))
        return wgmma_clocks(workload, config, target, columns, _RATES)

    def pack(
        self, weight: np.ndarray, bias: np.ndarray | None, workload: Workload, config: Config, target: Target
    ) -> Packed:
        shape = Shape.of(config)
        packed = wgmma_panels(weight, shape.rows, shape.run, self.every)
        tiles = packed.tiles.view(np.uint8).ravel()
        return Packed((packed.heads.ravel(), packed.starts, tiles, bias_array(bias, workload.m)))

    def kernel(self, workload: Workload, config: Config, packed: Packed, target: Target, symbol: str) -> Any:
        g, shape = flat_geometry(workload), Shape.of(config)
        defines = (
            *(("SP_ROWS", shape.rows // TILE_ROWS), ("SP_TN", shape.tn), ("SP_STEP", shape.run)),
            *(("SP_STAGES", shape.stages), ("SP_RESIDENT", shape.resident)),
        )
        grid = (-(-g.positions // shape.tn) * shape.split, -(-workload.m // shape.rows))
        threads = 128 * _GROUPS + (128 if shape.resident == 1 else 32)
        return box_launch(
            "wgmma_panels", defines, workload, grid, threads, shape.shared, shape.run, cluster=shape.split
        )


def wgmma_clocks(workload: Workload, config: Config, target: Target, columns: float, rates: Rates) -> float:
    """What to expect of panels with so many columns, one block after another: its products, its copies and the chain of
    its steps overlap. No less than all bytes from L2 take.
    """
    g, shape = flat_geometry(workload), Shape.of(config)
    columns /= shape.split
    blocks = -(-workload.m // shape.rows) * -(-g.positions // shape.tn) * shape.split
    share = split_share(blocks, shape.split, target.sms)
    if shape.split > 1:  # blocks of a cluster meet on one multiprocessor where that has room for two
        share = max(share, shape.resident)
    beside = min(share, shape.resident)
    real = min(shape.tn, -(-g.positions // 8) * 8)  # what lies past the end is not read
    copied, sums = 2 * columns * (real + shape.rows), shape.rows * shape.tn
    chain = columns / shape.run * max(rates.latency / shape.stages, rates.step)
    steps = max(beside * columns * sums / rates.products, chain, beside * copied / rates.port)
    stored = beside * sums / shape.split * (2 if workload.layout_out.half else 4) / rates.stored
    sent = beside * split_clocks(sums, shape.split, rates.sent)
    traffic = rates.fixed + blocks * copied / (target.sms * rates.l2) + stored
    return max(traffic, -(-share // shape.resident) * (rates.fixed + steps + stored + sent))


@dataclass(frozen=True)
class Shape:
    """Rows of a panel, positions of a block, columns of a step, stages, blocks of a multiprocessor, of a cluster."""

    rows: int
    tn: int
    run: int
    stages: int
    resident: int
    split: int = 1

    @staticmethod
    def of(config: Config) -> Shape:
        return Shape(*shape_sizes(config))

    @property
    def shared(self) -> int:
        """Bytes: stages of X and W."""
        return ring_bytes(self.stages, 2 * self.run * (self.tn + self.rows), self.split)
