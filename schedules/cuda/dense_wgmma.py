"""Dense product on Hopper's tensor cores: the kernel of cuda.block_wgmma with all columns.

    panels of 128 or 64 rows x 64 to 256 positions, as in block_wgmma.py; every panel has every column

Requires: sm_90; a product with X in float16 (`HalfTiled`), a workload with `fp16`.
"""

from __future__ import annotations

from sparsetvm.schedules.cuda.block_wgmma import BlockWgmma, wgmma_clocks
from sparsetvm.schedules.cuda.boxes import reads_boxes

from sparsetvm.core.config import Config
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload

_FIXED, _L2_BYTES = 3600, 64  # clocks; bytes a clock and multiprocessor


class DenseWgmma(BlockWgmma):
    """Template cuda.dense_wgmma."""

    name = "cuda.dense_wgmma"
    version = 1
    dense = True
    shapes = (
        *("128x256-64-4-1", "128x256-32-8-1", "64x256-64-5-1", "64x256-32-5-2"),
        *("128x128-32-6-2", "128x128-32-6-2-2", "128x128-32-6-2-4", "128x128-32-6-2-8", "128x128-64-6-1-4"),
        *("128x64-64-4-2", "128x64-64-4-2-2", "128x64-64-4-2-4", "64x128-64-4-2", "64x128-64-4-2-2", "64x128-64-4-2-4"),
    )
    every = True

    def matches(self, workload: Workload, target: Target) -> bool:
        return reads_boxes(workload, target)

    def estimate(self, workload: Workload, config: Config, target: Target) -> float:
        """Right for 4096 x 4096 (41.9 us on an H200) and 2048 x 2048 (12.8 us) and 1024 positions; shapes for fewer
        positions were added without measurements.
        """
        return wgmma_clocks(workload, config, target, workload.k, _FIXED, _L2_BYTES)
