"""Block-sparse product on tensor cores, factors in TF32, sums in float32: the kernel of cuda.block_mma.

    panels of TM rows x TN positions, as in block_mma.py; for step of 16 columns: TM / 16 * TN / 8 times two m16n8k8

Requires: float32 layouts that `fits_panels`, a pattern that `shares_columns`, a workload with `tf32`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sparsetvm.schedules.base import Packed, Template
from sparsetvm.schedules.cuda.block_mma import BlockMma, pack_panels, panel_clocks, panel_launch
from sparsetvm.schedules.cuda.panels import fits_panels, shares_columns

from sparsetvm.core.config import Config
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload
from sparsetvm.space.space import Space

_BYTES = 4  # of a number of W


class BlockTf32(Template):
    """Template cuda.block_tf32."""

    name = "cuda.block_tf32"
    version = 1
    arithmetic = "tf32"

    def matches(self, workload: Workload, target: Target) -> bool:
        fits = target.kind == "cuda" and workload.tf32 and fits_panels(workload, half=False)
        return fits and shares_columns(workload) and workload.nnz > 0

    def space(self, workload: Workload, target: Target) -> Space:
        return Space(self.name, BlockMma().space(workload, target).knobs)

    def default(self, workload: Workload, target: Target) -> Config:
        """The config with the smallest estimate (of equal ones the first)."""
        return self.smallest_estimate(workload, target)

    def estimate(self, workload: Workload, config: Config, target: Target) -> float:
        return panel_clocks(workload, config, target, _BYTES)

    def pack(
        self, weight: np.ndarray, bias: np.ndarray | None, workload: Workload, config: Config, target: Target
    ) -> Packed:
        return pack_panels(weight, bias, workload, config, w_bytes=_BYTES)

    def kernel(self, workload: Workload, config: Config, packed: Packed, target: Target, symbol: str) -> Any:
        return panel_launch(workload, config, _BYTES)
