"""Product of a 2:4 weight on Hopper's sparse tensor cores: factors in float16, sums in float32.

    block: 128 or 256 rows x TN positions:
        a warp: for step of 64 columns (STAGES of them in flight): starts the copies of X and W
        two groups of four warps: for tile of 64 rows: 2 instructions m64 x TN x k32 (wgmma.sp)
    with few positions K is split over a cluster of blocks, whose sums meet in shared memory (cluster_sums.cuh)

Requires: sm_90; a product with X in float16 (`HalfTiled`), a workload with `fp16` and a pattern 2:4 (or sparser, in the
same groups of four columns). Weights rounded to float16 and packed by formats/two_four.py.
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

from sparsetvm.core.config import Config
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload
from sparsetvm.formats.two_four import TILE, TILE_BYTES, pack_two_four

# Tiles of 64 rows of a group of warps, positions, stages; then blocks that split K, blocks of a multiprocessor (both 1
# where they are not named). Two blocks of a cluster on one multiprocessor were up to twice as slow as on two.
_SHAPES = (
    *("1x256-5", "1x256-4", "2x128-6", "2x128-5", "1x128-8", "1x128-4"),
    *("1x128-8-2-1", "1x128-8-4-1", "1x64-6-1-2", "1x64-12-2-1", "1x64-12-4-1"),
)
_GROUPS = 2
# Fitted to 64 times on an H200 (2048 and 4096 squared, 16 to 1024 positions), off by 10 % (rms). Clocks of a block
# beside its steps; bytes a clock from L2 of all multiprocessors at once, of one, that a block sends to others of its
# cluster. _STEP: at least of a step, by tiles and positions: the chip lowers its clock while these run. _LATENCY: of a
# copy, shared by stages.
_FIXED, _L2_BYTES, _PORT_BYTES, _SENT = 2140, 48.5, 140, 8
_STEP = {(1, 256): 863, (2, 128): 904, (1, 128): 427, (1, 64): 373}
_LATENCY = 2100


class TwoFour(BoxTemplate):
    """Template cuda.two_four."""

    name = "cuda.two_four"
    version = 2
    shapes = _SHAPES

    def matches(self, workload: Workload, target: Target) -> bool:
        pattern = workload.pattern
        two_of_four = (pattern.kind, pattern.block) in (("n:m", (2, 4)), ("n:m", (1, 4)))
        return two_of_four and reads_boxes(workload, target)

    def estimate(self, workload: Workload, config: Config, target: Target) -> float:
        """Of one block after another: its chain of steps, or their copies, and the sums that blocks exchange."""
        shape, positions = _Shape.of(config), flat_geometry(workload).positions
        blocks = -(-workload.m // shape.rows) * -(-positions // shape.tn) * shape.split
        steps = -(-workload.k // (TILE * shape.split))
        real = min(shape.tn, -(-positions // 8) * 8)  # what lies past the end is not read
        copied = 2 * TILE * real + shape.w_bytes
        share = split_share(blocks, shape.split, target.sms)
        beside = min(share, shape.resident)
        step = max(beside * copied / _PORT_BYTES, _STEP[shape.tiles, shape.tn], _LATENCY / shape.stages)
        sums = beside * split_clocks(shape.rows * shape.tn, shape.split, _SENT)
        traffic = _FIXED + blocks * steps * copied / (target.sms * _L2_BYTES)
        return max(traffic, -(-share // shape.resident) * (_FIXED + steps * step + sums))

    def pack(
        self, weight: np.ndarray, bias: np.ndarray | None, workload: Workload, config: Config, target: Target
    ) -> Packed:
        return Packed((pack_two_four(weight, _Shape.of(config).rows).ravel(), bias_array(bias, workload.m)))

    def kernel(self, workload: Workload, config: Config, packed: Packed, target: Target, symbol: str) -> Any:
        g, shape = flat_geometry(workload), _Shape.of(config)
        grid = (-(-workload.m // shape.rows) * shape.split, -(-g.positions // shape.tn))
        steps = -(-workload.k // TILE)
        defines = (
            *(("SP_TILES", shape.tiles), ("SP_TN", shape.tn), ("SP_STAGES", shape.stages)),
            ("SP_RESIDENT", shape.resident),
        )
        threads = 128 * _GROUPS + (128 if shape.resident == 1 else 32)
        return box_launch(
            "two_four", defines, workload, grid, threads, shape.shared, TILE, (steps,), cluster=shape.split
        )


@dataclass(frozen=True)
class _Shape:
    """Tiles of a group of warps, positions of a block, stages, blocks that split K, blocks of a multiprocessor."""

    tiles: int
    tn: int
    stages: int
    split: int = 1
    resident: int = 1

    @staticmethod
    def of(config: Config) -> _Shape:
        return _Shape(*shape_sizes(config))

    @property
    def rows(self) -> int:
        return TILE * _GROUPS * self.tiles

    @property
    def w_bytes(self) -> int:
        """Of a step."""
        return _GROUPS * self.tiles * TILE_BYTES

    @property
    def shared(self) -> int:
        """Bytes: stages of X and W."""
        return ring_bytes(self.stages, 2 * TILE * self.tn + self.w_bytes, self.split)
