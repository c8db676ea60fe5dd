"""Dense product on Hopper's tensor cores: the kernel of cuda.block_wgmma with all columns.

    panels of 128 or 64 rows x 64 to 256 positions, as in block_wgmma.py; every panel has every column

Requires: sm_90; a product with X in float16 (`HalfTiled`), a workload with `fp16`.
"""

from __future__ import annotations

from sparsetvm.schedules.cuda.block_wgmma import BlockWgmma, Rates, wgmma_clocks
from sparsetvm.schedules.cuda.boxes import reads_boxes
from sparsetvm.schedules.cuda.geometry import flat_geometry

from sparsetvm.core.config import Config
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload

# Fitted to 82 times on an H200 (2048 and 4096 squared, 16 to 1024 positions), off by 22 % (rms).
_RATES = Rates(2000, 53.2, 118, 1653, 40, 1910, 433, 8)
_FEW = 16  # positions up to which cuda.dense_fp16 was faster by a third and more


class DenseWgmma(BlockWgmma):
    """Template cuda.dense_wgmma."""

    name = "cuda.dense_wgmma"
    version = 1
    dense = True
    shapes = (
        *("128x256-64-4-1", "128x256-32-8-1", "64x256-64-5-1", "64x256-32-5-2"),
        *("128x128-32-6-2", "128x128-64-6-1-2", "128x128-64-6-1-4", "128x64-64-4-2", "128x64-64-4-2-2"),
        *(
            "64x128-64-4-2",
            "64x128-64-4-2-2",
            "128x64-64-8-1-2",
            "128x64-64-8-1-4",
            "64x128-64-8-1-2",
            "64x128-64-8-1-4",
        ),
    )
    every = True

    def matches(self, workload: Workload, target: Target) -> bool:
        return reads_boxes(workload, target) and flat_geometry(workload).positions > _FEW

    def estimate(self, workload: Workload, config: Config, target: Target) -> float:
        return wgmma_clocks(workload, config, target, workload.k, _RATES)
