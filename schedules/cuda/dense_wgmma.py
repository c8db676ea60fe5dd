"""Dense product on Hopper's tensor cores, many positions: the kernel of cuda.block_wgmma with all columns.

    panels of 128 or 64 rows x 256 positions, as in block_wgmma.py; every panel has every column

Requires: sm_90; a product with X in float16 (`HalfTiled`), a workload with `fp16`.
"""

from __future__ import annotations

from sparsetvm.schedules.cuda.block_wgmma import BlockWgmma, reads_boxes

from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload


class DenseWgmma(BlockWgmma):
    """Template cuda.dense_wgmma."""

    name = "cuda.dense_wgmma"
    version = 1
    dense = True
    arithmetic = "float16"
    every = True
    shapes = ("128x256-64-4-1", "128x256-32-8-1", "64x256-64-5-1", "64x256-32-5-2")

    def matches(self, workload: Workload, target: Target) -> bool:
        return reads_boxes(workload, target)
