"""Product of large blocks on Hopper's own tensor core instructions, many positions: X and W by the copy engine.

    block: a panel of 64 or 128 rows x TN positions:
        a warp: for step of `run` columns that a row of the panel has (STAGES in flight): starts the copies of X and W
        two groups of four warps, 64 rows or half of the positions each: run / 16 instructions m64 x 128 or 256 x k16

Requires: sm_90; a product with X in float16 (`HalfTiled`), a workload with `fp16`, blocks of 16 rows and more and of 32
columns or a multiple. Panels of lower blocks are larger than these, and hold the columns of several.
Weights rounded to float16 and packed by formats/wgmma_panels.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from sparsetvm.schedules.base import Packed
from sparsetvm.schedules.cuda.boxes import BoxTemplate, box_launch, reads_boxes, ring_bytes, shape_sizes
from sparsetvm.schedules.cuda.epilogue import bias_array
from sparsetvm.schedules.cuda.geometry import flat_geometry
from sparsetvm.schedules.cuda.panels import expected_steps

from sparsetvm.core.config import Config
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload
from sparsetvm.formats.panel_steps import STEP
from sparsetvm.formats.wgmma_panels import TILE_ROWS, wgmma_panels

# Rows of a panel x TN - columns of a step - stages - blocks of a multiprocessor.
_SHAPES = ("64x256-32-5-2", "64x256-64-5-1", "64x256-32-10-1", "64x512-32-6-1", "64x512-64-3-1", "128x256-64-4-1")
_GROUPS = 2
_FEWEST_ROWS, _LEAST_RUN = 16, 2 * STEP
# Clocks; bytes a clock and multiprocessor; multiply-adds a clock of a multiprocessor.
_FIXED, _L2_BYTES, _PRODUCTS, _STORED, _LATENCY = 5000, 45, 1800, 12, 1775


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
        return wgmma_clocks(workload, config, target, (mean + spread) * STEP, _L2_BYTES)

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
        grid = (-(-g.positions // shape.tn), -(-workload.m // shape.rows))
        threads = 128 * _GROUPS + (128 if shape.resident == 1 else 32)
        return box_launch("wgmma_panels", defines, workload, grid, threads, shape.shared, shape.run)


def wgmma_clocks(workload: Workload, config: Config, target: Target, columns: float, l2_bytes: float) -> float:
    """What to expect of panels with so many columns: bytes from L2 (l2_bytes a clock and multiprocessor), products and
    the chain of a block's steps overlap.
    """
    g, shape = flat_geometry(workload), Shape.of(config)
    share = max(1.0, -(-workload.m // shape.rows) * -(-g.positions // shape.tn) / target.sms)
    waves = -(-share // shape.resident)
    traffic = share * 2 * columns * (shape.tn + shape.rows) / l2_bytes
    products = waves * shape.resident * columns * shape.rows * shape.tn / _PRODUCTS
    chain = waves * columns / shape.run * _LATENCY / shape.stages
    stored = share * shape.rows * shape.tn * (2 if workload.layout_out.half else 4) / _STORED
    return _FIXED + stored + max(traffic, products, chain)


@dataclass(frozen=True)
class Shape:
    """Rows of a panel, positions of a block, columns of a step, stages, blocks of a multiprocessor."""

    rows: int
    tn: int
    run: int
    stages: int
    resident: int

    @staticmethod
    def of(config: Config) -> Shape:
        return Shape(*shape_sizes(config))

    @property
    def shared(self) -> int:
        """Bytes: stages of X and W."""
        return ring_bytes(self.stages, 2 * self.run * (self.tn + self.rows))
