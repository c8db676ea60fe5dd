"""Block-sparse product on tensor cores, factors in TF32, sums in float32: the kernel of cuda.block_mma.

    panels of TM rows x TN positions, as in block_mma.py; for step of 16 columns: TM / 16 * TN / 8 times two m16n8k8

Requires: float32 layouts that `fits_panels`, a pattern that `shares_columns`, a workload with `tf32`.
"""

from __future__ import annotations

from sparsetvm.schedules.cuda.block_mma import BlockMma
from sparsetvm.schedules.cuda.panels import fits_panels, shares_columns

from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload


class BlockTf32(BlockMma):
    """Template cuda.block_tf32."""

    name = "cuda.block_tf32"
    version = 1
    arithmetic = "tf32"
    w_bytes = 4

    def matches(self, workload: Workload, target: Target) -> bool:
        fits = target.kind == "cuda" and workload.tf32 and fits_panels(workload, half=False)
        return fits and shares_columns(workload) and workload.nnz > 0
