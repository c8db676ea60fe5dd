"""Block-sparse product on tensor cores, factors in bfloat16, sums in float32: the kernel of cuda.block_mma.

    panels of TM rows x TN positions, as in block_mma.py; X and Y are float32 in memory

Requires: float32 layouts that `fits_panels`, a pattern that `shares_columns`, a workload with `bf16`.
"""

from __future__ import annotations

from sparsetvm.schedules.cuda.block_mma import BlockMma
from sparsetvm.schedules.cuda.panels import fits_panels, shares_columns

from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload


class BlockBf16(BlockMma):
    """Template cuda.block_bf16."""

    name = "cuda.block_bf16"
    version = 1
    arithmetic = "bfloat16"

    def matches(self, workload: Workload, target: Target) -> bool:
        fits = target.kind == "cuda" and workload.bf16 is True and fits_panels(workload, half=False)
        return fits and shares_columns(workload) and workload.nnz > 0
