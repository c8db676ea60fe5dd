"""Dense product on tensor cores, factors in float16, sums in float32: the kernel of cuda.block_mma with all columns.

    panels of TM rows x TN positions, as in block_mma.py; every panel has every column

Requires: layouts that `supports_panels`, a workload with `fp16`.
"""

from __future__ import annotations

from sparsetvm.schedules.cuda.block_mma import BlockMma
from sparsetvm.schedules.cuda.panels import supports_panels

from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload


class DenseFp16(BlockMma):
    """Template cuda.dense_fp16."""

    name = "cuda.dense_fp16"
    version = 1
    dense = True
    every = True

    def matches(self, workload: Workload, target: Target) -> bool:
        return target.kind == "cuda" and supports_panels(workload)
