"""Block-sparse product on tensor cores, many positions: X and W come to shared memory by the copy engine.

    block: a group of panels of TM rows that have columns in common x TN positions:
        a warp: for stage of runs of columns that any of the panels has (STAGES in flight): starts the copies of their X
            and of the panels' W
        WARPS warps, each TN / WARPS positions: for panel that has the run: TM / 16 * TN / WARPS / 8 instructions a step

Requires: sm_90; a product with X in float16 (`HalfTiled`), a workload with `fp16`, blocks of 16 columns and more.
Weights rounded to float16 and packed by formats/panel_groups.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from sparsetvm.schedules.base import Packed
from sparsetvm.schedules.cuda.boxes import BoxTemplate, box_launch, reads_boxes, ring_bytes, shape_sizes
from sparsetvm.schedules.cuda.epilogue import bias_array
from sparsetvm.schedules.cuda.geometry import flat_geometry
from sparsetvm.schedules.cuda.panels import expected_steps, run_of, shares_columns

from sparsetvm.core.config import Config
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload
from sparsetvm.formats.panel_groups import START_BITS, panel_groups
from sparsetvm.formats.panel_steps import STEP

# Rows of a panel x TN - panels - warps - stages - blocks of a multiprocessor.
_SHAPES = (
    *("32x256-2-8-5-2", "32x256-1-8-4-2", "32x128-2-4-3-4", "32x128-2-4-9-2", "32x256-2-8-10-1", "32x128-2-4-6-3"),
    *("32x128-1-4-11-2", "32x64-2-2-6-4", "32x64-1-2-8-4", "32x128-1-4-7-3", "32x128-1-4-4-4"),
    *("16x128-4-4-4-3", "16x256-2-8-5-2", "16x256-4-4-4-2", "16x128-2-4-5-4"),
)
_STAGE_COLUMNS = 32
_MEMBERS = 4  # bytes: which panels have the columns of a stage
# Clocks; bytes a clock and multiprocessor. _PRODUCTS: of a stage, times what a warp has of 32 columns of a tile.
_FIXED, _L2_BYTES, _STORED, _LATENCY, _PRODUCTS = 4380, 38.4, 9.9, 1775, 0.4
_SAVED = {1: 1.0, 2: 0.9, 4: 0.82}  # of the columns of random panels, grouped by likeness


class BlockTiles(BoxTemplate):
    """Template cuda.block_tiles."""

    name = "cuda.block_tiles"
    version = 1
    shapes = _SHAPES

    def matches(self, workload: Workload, target: Target) -> bool:
        wide = shares_columns(workload) and run_of(workload) == STEP
        return wide and workload.nnz > 0 and workload.k < 1 << START_BITS and reads_boxes(workload, target)

    def estimate(self, workload: Workload, config: Config, target: Target) -> float:
        """Fitted to 80 times on an H200 (2048 x 2048 and 4096 x 4096, blocks of 64 x 64 to 16 x 16, 128 to 1024
        positions, float16 in memory), off by 11 % (rms); the config it names is 4 % slower than the fastest on average,
        18 % at worst. Bytes from L2 and the chain of a block's stages overlap.
        """
        g, shape = flat_geometry(workload), _Shape.of(config)
        rows = shape.tm * shape.panels
        mean, _ = expected_steps(workload, shape.tm)
        together, _ = expected_steps(workload, rows)
        if workload.pattern.kind == "block":
            together *= _SAVED[min(shape.panels, max(1, rows // workload.pattern.block[0]))]
        stages, alone = together * STEP / _STAGE_COLUMNS, mean * STEP / _STAGE_COLUMNS
        share = -(-workload.m // rows) * -(-g.positions // shape.tn) / target.sms
        traffic = share * 2 * _STAGE_COLUMNS * (stages * shape.tn + shape.panels * alone * shape.tm) / _L2_BYTES
        products = _PRODUCTS * alone * rows * shape.tn / shape.warps
        chain = max(1.0, share / shape.resident) * (stages * _LATENCY / shape.stages + products)
        stored = share * rows * shape.tn * (2 if workload.layout_out.half else 4) / _STORED
        return _FIXED + stored + max(traffic, chain)

    def pack(
        self, weight: np.ndarray, bias: np.ndarray | None, workload: Workload, config: Config, target: Target
    ) -> Packed:
        shape, run = _Shape.of(config), _run(workload)
        packed = panel_groups(weight, shape.tm, run, shape.panels, _STAGE_COLUMNS // run)
        tiles = packed.tiles.view(np.uint8).ravel()
        return Packed((packed.groups.ravel(), packed.runs, tiles, bias_array(bias, workload.m)))

    def kernel(self, workload: Workload, config: Config, packed: Packed, target: Target, symbol: str) -> Any:
        g, shape, run = flat_geometry(workload), _Shape.of(config), _run(workload)
        defines = (
            *(("SP_TM", shape.tm), ("SP_PANELS", shape.panels), ("SP_TN", shape.tn), ("SP_WARPS", shape.warps)),
            *(("SP_RUN", run), ("SP_RUNS", _STAGE_COLUMNS // run), ("SP_STAGES", shape.stages)),
            ("SP_RESIDENT", shape.resident),
        )
        grid = (-(-g.positions // shape.tn), -(-workload.m // (shape.tm * shape.panels)))
        threads = 32 * (shape.warps + 1)
        return box_launch("block_tiles", defines, workload, grid, threads, shape.shared, run, native=False)


def _run(workload: Workload) -> int:
    """Columns that a panel takes together."""
    wide = workload.k if workload.pattern.kind in ("rows", "dense") else workload.pattern.block[1]
    return _STAGE_COLUMNS if wide % _STAGE_COLUMNS == 0 else STEP


@dataclass(frozen=True)
class _Shape:
    """Rows of a panel, positions, panels and warps of a block, stages in flight, blocks of a multiprocessor."""

    tm: int
    tn: int
    panels: int
    warps: int
    stages: int
    resident: int

    @staticmethod
    def of(config: Config) -> _Shape:
        return _Shape(*shape_sizes(config))

    @property
    def shared(self) -> int:
        """Bytes: stages of X and W and the members of each."""
        return ring_bytes(self.stages, 2 * _STAGE_COLUMNS * (self.tn + self.panels * self.tm) + _MEMBERS)
