"""Dense product on tensor cores, factors in bfloat16, sums in float32: the kernel of cuda.block_mma with all columns.

    panels of TM rows x TN positions, as in block_mma.py; every panel has every column

Requires: float32 layouts that `fits_panels`, a workload with `bf16`.
"""

from __future__ import annotations

from sparsetvm.schedules.cuda.block_mma import BlockMma
from sparsetvm.schedules.cuda.panels import fits_panels

from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload


class DenseBf16(BlockMma):
    """Template cuda.dense_bf16."""

    name = "cuda.dense_bf16"
    version = 1
    dense = True
    arithmetic = "bfloat16"
    every = True

    def matches(self, workload: Workload, target: Target) -> bool:
        return target.kind == "cuda" and workload.bf16 is True and fits_panels(workload, half=False)
