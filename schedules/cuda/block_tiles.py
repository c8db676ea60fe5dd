"""Block-sparse product on tensor cores, many positions: X and W come to shared memory by the copy engine.

    block, for tile of its list: a group of panels of TM rows that have columns in common x TN positions:
        a warp: for stage of runs of columns that any of the panels has (STAGES in flight): starts the copies of their X
            and of the panels' W
        WARPS warps, each TN / WARPS positions: for panel that has the run: TM / 16 * TN / WARPS / 8 instructions a step

Requires: sm_90; a product with X in float16 (`HalfTiled`), a workload with `fp16`, blocks of 16 columns and more. Weights
rounded to float16 and packed by formats/panel_groups.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from sparsetvm.schedules.base import Packed, Template
from sparsetvm.schedules.cuda.epilogue import bias_array, epilogue_defines
from sparsetvm.schedules.cuda.geometry import flat_geometry
from sparsetvm.schedules.cuda.launch import Launch, TensorMap
from sparsetvm.schedules.cuda.panels import FIXED, L2_BYTES, STORED, expected_steps, run_of, shares_columns, supports_panels

from sparsetvm.core.config import Config
from sparsetvm.core.layout import HalfTiled
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload
from sparsetvm.formats.panel_groups import START_BITS, dealt_tiles, panel_groups
from sparsetvm.formats.panel_steps import STEP
from sparsetvm.space.knobs import Choice
from sparsetvm.space.space import Space

# Rows of a panel x TN - panels - warps - stages - blocks of a multiprocessor.
_SHAPES = (
    *("32x256-1-4-4-3", "32x256-1-4-3-3", "32x256-1-8-4-2", "32x128-1-4-4-4", "32x128-1-4-6-3", "32x128-1-2-4-4"),
    *("32x256-2-4-4-2", "32x256-2-4-5-2", "32x128-2-4-4-3", "32x128-2-2-4-3", "32x256-4-8-6-1", "32x128-4-4-6-2"),
    *("16x256-1-4-4-3", "16x256-2-4-4-3", "16x256-4-4-4-2", "16x128-4-4-4-3"),
)
_ALIGNMENT = 1024
_STAGE_COLUMNS = 32
_TILE_COST = 8 << 10  # bytes


class BlockTiles(Template):
    """Template cuda.block_tiles."""

    name = "cuda.block_tiles"
    version = 1
    arithmetic = "float16"

    def matches(self, workload: Workload, target: Target) -> bool:
        return (
            (target.kind, target.isa) == ("cuda", "sm_90")
            and workload.op == "matmul"
            and isinstance(workload.layout_in, HalfTiled)
            and supports_panels(workload)
            and shares_columns(workload)
            and run_of(workload) == STEP
            and workload.k < 1 << START_BITS
            and workload.nnz > 0
        )

    def space(self, workload: Workload, target: Target) -> Space:
        return Space(self.name, (Choice("shape", _SHAPES),))

    def default(self, workload: Workload, target: Target) -> Config:
        """The config with the smallest estimate."""
        return min(self.space(workload, target), key=lambda config: self.estimate(workload, config, target))

    def estimate(self, workload: Workload, config: Config, target: Target) -> float:
        g, shape = flat_geometry(workload), _Shape.of(config)
        mean, spread = expected_steps(workload, shape.tm)
        together, _ = expected_steps(workload, shape.tm * shape.panels)
        blocks = -(-workload.m // (shape.tm * shape.panels)) * -(-g.positions // shape.tn)
        share = blocks / target.sms
        traffic = share * 2 * STEP * (together * shape.tn + shape.panels * mean * shape.tm) / L2_BYTES
        stored = share * shape.panels * shape.tm * shape.tn * (2 if workload.layout_out.half else 4) / STORED
        return FIXED + stored + traffic + spread

    def pack(
        self, weight: np.ndarray, bias: np.ndarray | None, workload: Workload, config: Config, target: Target
    ) -> Packed:
        g, shape, run = flat_geometry(workload), _Shape.of(config), _run(workload)
        packed = panel_groups(weight, shape.tm, run, shape.panels, _STAGE_COLUMNS // run)
        # Bytes of X, W and Y of a tile, and what it costs besides in bytes.
        costs = packed.groups[:, 1] * (2 * _STAGE_COLUMNS * shape.tn) + packed.counts * (2 * run * shape.tm)
        costs += shape.panels * shape.tm * shape.tn * (4 if workload.layout_out.half else 8) + _TILE_COST
        lists, tiles = dealt_tiles(packed.groups, costs, g.positions, shape.tn, shape.lists(workload, target))
        pieces = packed.pieces.view(np.uint8).ravel()
        return Packed((lists, tiles.ravel(), packed.runs, pieces, bias_array(bias, workload.m)))

    def kernel(self, workload: Workload, config: Config, packed: Packed, target: Target, symbol: str) -> Any:
        g, shape, run = flat_geometry(workload), _Shape.of(config), _run(workload)
        defines = (
            *(("SP_TM", shape.tm), ("SP_PANELS", shape.panels), ("SP_TN", shape.tn), ("SP_WARPS", shape.warps)),
            *(("SP_RUN", run), ("SP_RUNS", _STAGE_COLUMNS // run), ("SP_STAGES", shape.stages)),
            *(("SP_RESIDENT", shape.resident), ("SP_Y_HALF", int(workload.layout_out.half))),
            *epilogue_defines(workload.epilogue),
        )
        return Launch(
            "block_tiles.cu",
            "block_tiles",
            defines,
            (shape.lists(workload, target), 1, 1),
            32 * (shape.warps + 1),
            shape.shared,
            1,
            (workload.m, g.positions, g.y_row, g.r_row),
            overlaps=True,
            map=TensorMap(workload.k, g.positions, g.x_row, run),
        )


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
        return _Shape(*(int(size) for size in config.str("shape").replace("x", "-").split("-")))

    def lists(self, workload: Workload, target: Target) -> int:
        """Blocks of threads: as many as run at once, if there are tiles for all."""
        tiles = -(-workload.m // (self.tm * self.panels)) * -(-flat_geometry(workload).positions // self.tn)
        return min(tiles, target.sms * self.resident)

    @property
    def shared(self) -> int:
        """Bytes: stages of X and W, two barriers and a note of each."""
        return _ALIGNMENT + self.stages * (2 * _STAGE_COLUMNS * (self.tn + self.panels * self.tm) + 24 + 4 * self.panels)
