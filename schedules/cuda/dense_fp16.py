"""Dense product on tensor cores, factors in float16, sums in float32: cuda.block_mma with all columns in every panel.

Requires: layouts that `supports_panels`.
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

    def matches(self, workload: Workload, target: Target) -> bool:
        return target.kind == "cuda" and supports_panels(workload)
