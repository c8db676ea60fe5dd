"""Dense product on tensor cores, factors in float16, sums in float32: the kernel of cuda.block_mma with all columns.

    panels of TM rows x TN positions, as in block_mma.py; every panel has every column

Requires: layouts that `supports_panels`, a workload with `fp16`.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from sparsetvm.schedules.base import Packed, Template
from sparsetvm.schedules.cuda.block_mma import BlockMma, pack_panels
from sparsetvm.schedules.cuda.panels import supports_panels

from sparsetvm.core.config import Config
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload
from sparsetvm.space.space import Space

_BLOCKS = BlockMma()


class DenseFp16(Template):
    """Template cuda.dense_fp16."""

    name = "cuda.dense_fp16"
    version = 1
    dense = True
    arithmetic = "float16"

    def matches(self, workload: Workload, target: Target) -> bool:
        return target.kind == "cuda" and supports_panels(workload)

    def space(self, workload: Workload, target: Target) -> Space:
        return Space(self.name, _BLOCKS.space(workload, target).knobs)

    def default(self, workload: Workload, target: Target) -> Config:
        """The config with the smallest estimate."""
        return self.smallest_estimate(workload, target)

    def estimate(self, workload: Workload, config: Config, target: Target) -> float:
        return _BLOCKS.estimate(_whole(workload), config, target)

    def pack(
        self, weight: np.ndarray, bias: np.ndarray | None, workload: Workload, config: Config, target: Target
    ) -> Packed:
        return pack_panels(weight, bias, _whole(workload), config, every=True)

    def kernel(self, workload: Workload, config: Config, packed: Packed, target: Target, symbol: str) -> Any:
        return _BLOCKS.kernel(_whole(workload), config, packed, target, symbol)


def _whole(workload: Workload) -> Workload:
    """The workload as if nothing were pruned."""
    return msgspec.structs.replace(
        workload, pattern=msgspec.structs.replace(workload.pattern, kind="dense", block=(1, 1), density=1.0)
    )
