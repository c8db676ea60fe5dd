"""Block-sparse product on tensor cores, many positions: rows of X are copied once for all panels of a block.

    block: PANELS panels of TM rows x TN positions:
        two warps: for stage of two runs of 16 columns that any panel has (STAGES in flight, cp.async): 32 x TN of X
        a warp for each panel: for its runs of the stage: TM x 16 of W from its own ring, TM / 16 * TN / 8 instructions

Requires: X in float16 (`HalfTiled`), layouts that `supports_panels`, blocks of 16 columns and more; weights as for
cuda.block_mma. With 8 panels at 90 % zeros in blocks of 32 x 32 that reads 71 % of the X, at 95 % 84 %.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from sparsetvm.schedules.base import Packed, Template
from sparsetvm.schedules.cuda.epilogue import bias_array, epilogue_defines
from sparsetvm.schedules.cuda.geometry import flat_geometry
from sparsetvm.schedules.cuda.launch import Launch
from sparsetvm.schedules.cuda.panels import (
    FIXED,
    L2_BYTES,
    STORED,
    expected_steps,
    panel_scalars,
    run_of,
    shares_columns,
    supports_panels,
)

from sparsetvm.core.config import Config
from sparsetvm.core.layout import HalfTiled
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload
from sparsetvm.formats.panel_steps import STEP, panel_steps, shared_stages
from sparsetvm.space.knobs import Choice
from sparsetvm.space.space import Space

# TM x TN - panels - stages - steps of W in flight - blocks of a multiprocessor.
_SHAPES = (
    *("32x128-8-20-4-1", "32x128-8-8-4-1", "32x128-4-16-8-1", "32x128-4-10-4-2", "32x128-2-10-4-2"),
    *("32x64-8-24-8-1", "32x64-8-12-4-2", "32x64-4-12-4-2", "32x64-14-20-4-1"),
    *("16x128-8-16-8-1", "16x128-14-16-8-1", "16x64-8-12-4-2"),
)
_COPIERS = 2  # warps
_STAGE, _MULTIPLIED = 60, 150  # clocks of a warp, guessed: a stage that it skips, a step that it multiplies


class BlockRing(Template):
    """Template cuda.block_ring."""

    name = "cuda.block_ring"
    version = 1
    arithmetic = "float16"

    def matches(self, workload: Workload, target: Target) -> bool:
        return (
            target.kind == "cuda"
            and isinstance(workload.layout_in, HalfTiled)
            and supports_panels(workload)
            and shares_columns(workload)
            and run_of(workload) == STEP
            and workload.nnz > 0
        )

    def preferred(self, workload: Workload, target: Target) -> bool:
        """The estimate was never compared with measurements."""
        return False

    def space(self, workload: Workload, target: Target) -> Space:
        fitting = [shape for shape in _SHAPES if _Shape.of(shape).fits(target)]
        return Space(self.name, (Choice("shape", tuple(fitting)),))

    def default(self, workload: Workload, target: Target) -> Config:
        """The config with the smallest estimate."""
        return min(self.space(workload, target), key=lambda config: self.estimate(workload, config, target))

    def estimate(self, workload: Workload, config: Config, target: Target) -> float:
        g, shape = flat_geometry(workload), _Shape.of(config.str("shape"))
        mean, spread = expected_steps(workload, shape.tm)
        together, _ = expected_steps(workload, shape.tm * shape.panels)
        blocks = -(-workload.m // (shape.tm * shape.panels)) * -(-g.positions // shape.tn)
        share = blocks / target.sms
        waves = max(1, -(-blocks // (target.sms * shape.resident)))
        traffic = share * 2 * STEP * (together * shape.tn + shape.panels * mean * shape.tm) / L2_BYTES
        chain = waves * (_STAGE * together / 2 + _MULTIPLIED * (mean + 1.5 * spread))
        stored = share * shape.panels * shape.tm * shape.tn * (2 if workload.layout_out.half else 4) / STORED
        return FIXED + stored + max(traffic, chain)

    def pack(
        self, weight: np.ndarray, bias: np.ndarray | None, workload: Workload, config: Config, target: Target
    ) -> Packed:
        shape, taps = _Shape.of(config.str("shape")), flat_geometry(workload).taps[0]
        packed = panel_steps(weight, shape.tm, STEP, shape.panels)
        order = packed.heads[:, 0] // shape.tm
        stages = shared_stages(weight != 0, shape.tm, order, shape.panels)
        return Packed(
            (
                *(stages.groups.ravel(), taps[stages.starts].astype(np.int32).ravel(), stages.plan),
                *(packed.heads.ravel(), packed.fragments.view(np.uint32).ravel(), bias_array(bias, workload.m)),
            )
        )

    def kernel(self, workload: Workload, config: Config, packed: Packed, target: Target, symbol: str) -> Any:
        g, shape = flat_geometry(workload), _Shape.of(config.str("shape"))
        defines = (
            *(("SP_TM", shape.tm), ("SP_TN", shape.tn), ("SP_PANELS", shape.panels), ("SP_STAGES", shape.stages)),
            *(("SP_DEPTH", shape.depth), ("SP_RESIDENT", shape.resident), ("SP_Y_HALF", int(workload.layout_out.half))),
            *epilogue_defines(workload.epilogue),
        )
        panels = -(-workload.m // shape.tm)
        return Launch(
            "block_ring.cu",
            "block_ring",
            defines,
            (-(-panels // shape.panels), -(-g.positions // shape.tn), g.batch),
            32 * (shape.panels + _COPIERS),
            shape.shared,
            1,
            panel_scalars(g, workload.m, panels),
            overlaps=True,
        )


@dataclass(frozen=True)
class _Shape:
    """The tile of a warp, panels of a block, what is in flight, blocks of a multiprocessor."""

    tm: int
    tn: int
    panels: int
    stages: int
    depth: int
    resident: int

    @staticmethod
    def of(text: str) -> _Shape:
        return _Shape(*(int(size) for size in text.replace("x", "-").split("-")))

    @property
    def shared(self) -> int:
        """Bytes: stages of X with their barriers, rings of W."""
        return self.stages * (32 * (2 * self.tn + 16) + 16) + self.panels * self.depth * self.tm * 32

    def fits(self, target: Target) -> bool:
        return self.shared <= target.shared // self.resident
