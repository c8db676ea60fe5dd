"""Block-sparse product on tensor cores: panels of rows that share their columns, factors in float16, sums in float32.

    block: `panels` panels of TM rows x TN positions:
        warp: a panel, or one of `slices` shares of its columns:
            for step of 16 columns (`depth` of them in flight): TM x 16 of W and 16 x TN of X into registers,
                TM / 16 * TN / 8 instructions m16n8k16
    shares are added in fixed order in shared memory

Requires: layouts that `supports_flat` with rows of X one apart (products, 1x1 convolutions), a workload with `fp16`;
weights rounded to float16 on the host and packed in the order of the instruction's registers (formats/panel_steps.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sparsetvm.schedules.base import Packed, Template
from sparsetvm.schedules.cuda.epilogue import bias_array, epilogue_defines
from sparsetvm.schedules.cuda.geometry import FlatGeometry, flat_geometry, supports_flat
from sparsetvm.schedules.cuda.launch import Launch

from sparsetvm.core.config import Config
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload
from sparsetvm.formats.panel_steps import panel_steps
from sparsetvm.space.knobs import Ordered
from sparsetvm.space.space import Space


class BlockMma(Template):
    """Template cuda.block_mma."""

    name = "cuda.block_mma"
    version = 1

    def matches(self, workload: Workload, target: Target) -> bool:
        return True

    def space(self, workload: Workload, target: Target) -> Space:
        return Space(
            self.name,
            (
                *(Ordered("tm", (16, 32, 64)), Ordered("tn", (16, 32, 64, 128)), Ordered("panels", (1, 2, 4, 8, 12))),
                *(Ordered("slices", (1, 2, 4, 8)), Ordered("depth", (2, 3, 4))),
            ),
        )

    def default(self, workload: Workload, target: Target) -> Config:
        return Config.of(self.name, tm=32, tn=64, panels=4, slices=1, depth=2)

    def pack(
        self, weight: np.ndarray, bias: np.ndarray | None, workload: Workload, config: Config, target: Target
    ) -> Packed:
        g = flat_geometry(workload)
        p = panel_steps(weight, config.int("tm"), _run(workload), config.int("panels"))
        return Packed(
            (p.heads.ravel(), (p.starts * g.x_row).astype(np.int32).ravel(), p.fragments.view(np.uint32).ravel(), bias_array(bias, workload.m))
        )

    def kernel(self, workload: Workload, config: Config, packed: Packed, target: Target, symbol: str) -> Any:
        g = flat_geometry(workload)
        tm, tn, panels, slices, depth = (config.int(k) for k in ("tm", "tn", "panels", "slices", "depth"))
        j = next(j for j in (8, 4, 2) if g.positions % j == 0 and 8 * j <= tn)
        defines = (
            *(("SP_TM", tm), ("SP_J", j), ("SP_G", tn // (8 * j)), ("SP_PANELS", panels), ("SP_SLICES", slices)),
            *(("SP_DEPTH", depth), ("SP_RUN", _run(workload)), ("SP_RESIDENT", 1)),
            *(("SP_X_HALF", 1), ("SP_Y_HALF", 1)),
            *epilogue_defines(workload.epilogue),
        )
        count = -(-workload.m // tm)
        return Launch(
            "block_mma.cu",
            "block_mma",
            defines,
            (-(-count // panels), -(-g.positions // tn), g.batch),
            32 * panels * slices,
            4 * panels * slices * tm * (tn + 4) if slices > 1 else 0,
            1,
            _scalars(g, workload.m, count),
            overlaps=True,
        )


def _run(workload: Workload) -> int:
    c = workload.pattern.block[1]
    return next(run for run in (16, 8, 1) if c % run == 0)


def _scalars(g: FlatGeometry, m: int, panels: int) -> tuple[int, ...]:
    head, tail, stop = (g.borders[0][1], *g.borders[1]) if g.borders else (0, 0, 0)
    return (
        *(m, panels, g.positions, g.valid, g.pitch, g.width, g.x0, g.x_batch, g.x_row, g.y0, g.y_batch, g.y_row),
        *(g.r0, g.r_batch, g.r_row, head, tail, stop),
    )
