"""Product of a 2:4 weight on Hopper's sparse tensor cores: factors in float16, sums in float32.

    block: 128 or 256 rows x TN positions:
        a warp: for step of 64 columns (STAGES of them in flight): starts the copies of X and W
        two groups of four warps: for tile of 64 rows: 2 instructions m64 x TN x k32 (wgmma.sp)

Requires: sm_90; a product with X in float16 (`HalfTiled`), a workload with `fp16` and a pattern 2:4 (or sparser, in the
same groups of four columns). Weights rounded to float16 and packed by formats/two_four.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sparsetvm.schedules.base import Packed
from sparsetvm.schedules.cuda.boxes import BoxTemplate, box_launch, reads_boxes, ring_bytes, shape_sizes
from sparsetvm.schedules.cuda.epilogue import bias_array
from sparsetvm.schedules.cuda.geometry import flat_geometry

from sparsetvm.core.config import Config
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload
from sparsetvm.formats.two_four import TILE, TILE_BYTES, pack_two_four

# Tiles of 64 rows of a group of warps, positions, stages -> clocks of a step on an H200, all blocks at once, were its
# clock the highest: the chip lowers it by a third while these run.
_SHAPES = {"1x256-5": 1030, "1x256-4": 1035, "2x128-6": 1120, "2x128-5": 1125, "1x128-8": 490, "1x128-4": 520}
_GROUPS = 2
_FIXED = 5500  # clocks before the first step and after the last


class TwoFour(BoxTemplate):
    """Template cuda.two_four."""

    name = "cuda.two_four"
    version = 2
    shapes = tuple(_SHAPES)

    def matches(self, workload: Workload, target: Target) -> bool:
        pattern = workload.pattern
        two_of_four = (pattern.kind, pattern.block) in (("n:m", (2, 4)), ("n:m", (1, 4)))
        return two_of_four and reads_boxes(workload, target)

    def estimate(self, workload: Workload, config: Config, target: Target) -> float:
        """Waves of blocks, each a chain of steps; measured at 2048 x 2048 and 4096 x 4096, 1024 positions."""
        tiles, tn, _ = shape_sizes(config)
        rows = TILE * _GROUPS * tiles
        blocks = -(-workload.m // rows) * -(-flat_geometry(workload).positions // tn)
        waves = -(-blocks // target.sms)
        steps = -(-workload.k // TILE)
        return waves * (_FIXED + steps * _SHAPES[config.str("shape")])

    def pack(
        self, weight: np.ndarray, bias: np.ndarray | None, workload: Workload, config: Config, target: Target
    ) -> Packed:
        rows = TILE * _GROUPS * shape_sizes(config)[0]
        return Packed((pack_two_four(weight, rows).ravel(), bias_array(bias, workload.m)))

    def kernel(self, workload: Workload, config: Config, packed: Packed, target: Target, symbol: str) -> Any:
        g = flat_geometry(workload)
        tiles, tn, stages = shape_sizes(config)
        grid = (-(-workload.m // (TILE * _GROUPS * tiles)), -(-g.positions // tn))
        shared = ring_bytes(stages, 2 * TILE * tn + _GROUPS * tiles * TILE_BYTES)
        steps = -(-workload.k // TILE)
        defines = (("SP_TILES", tiles), ("SP_TN", tn), ("SP_STAGES", stages))
        return box_launch("two_four", defines, workload, grid, 128 * (_GROUPS + 1), shared, TILE, (steps,))
