"""Block-sparse product on tensor cores: panels of rows that share their columns, factors in float16, sums in float32.

    block: some panels of TM rows x TN positions:
        warp: a panel, or one of several shares of its columns:
            for step of 16 columns (`depth` of them in flight): TM x 16 of W and 16 x TN of X into registers,
                TM / 16 * TN / 8 instructions m16n8k16
    shares are added in fixed order in shared memory

Requires: layouts that `supports_panels`, a pattern that `shares_columns`; X, Y and the residual float32 or float16
(HalfTiled). Weights rounded to float16 and packed in the order of the instruction's registers (formats/panel_steps.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
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

from sparsetvm.core.arithmetic import Arithmetic
from sparsetvm.core.config import Config
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload
from sparsetvm.formats.panel_steps import panel_steps
from sparsetvm.space.knobs import Choice, Ordered
from sparsetvm.space.space import Space

_TILES = ("16x16", "32x16", "16x32", "32x32", "16x64", "32x64", "64x64", "16x128", "32x128")
_WARPS = ("1-1", "2-1", "4-1", "8-1", "12-1", "1-2", "2-2", "4-2", "1-4", "2-4", "1-8", "2-8", "1-16")
_REGISTERS = 64 << 10
_MISCELLANEOUS = 34  # registers of a thread besides sums and steps
_LATENCY, _STEP = 1130, 550  # clocks: of loads, shared by the steps in flight; of a step besides
_OVERLAP = 5.4  # exponent of the norm of traffic and latency
_FINISHED = 0.16  # clocks for a sum of a warp
# Breaks ties: 64 blocks seemed to take twice as long in two of six runs, 128 in none. Most likely that was the way of
# timing at that time (some launches were outside of graphs); to be measured again.
_FEW_BLOCKS = 1.02


class BlockMma(Template):
    """Template cuda.block_mma."""

    name = "cuda.block_mma"
    version = 1
    arithmetic: Arithmetic = "float16"
    w_bytes = 2  # of a number of W: 4 in TF32
    every = False  # whether panels have all columns

    def matches(self, workload: Workload, target: Target) -> bool:
        return target.kind == "cuda" and supports_panels(workload) and shares_columns(workload) and workload.nnz > 0

    def space(self, workload: Workload, target: Target) -> Space:
        return Space(self.name, (Choice("tile", _TILES), Choice("warps", _WARPS), Ordered("depth", (2, 3, 4))))

    def default(self, workload: Workload, target: Target) -> Config:
        """The config with the smallest estimate (of equal ones the first)."""
        return self.smallest_estimate(workload, target)

    def estimate(self, workload: Workload, config: Config, target: Target) -> float:
        """Fitted to 527 times on an H200 (2048 and 4096 squared, blocks of 64 x 64 to 8 x 1, 16 to 1024 positions,
        float16 in memory), off by 15 % (rms); the config it names is 15 % slower than the fastest on average, 43 % at
        worst. Bytes from L2 and the chain of a warp's steps overlap, stores and sums come on top.
        """
        workload = self._as_packed(workload)
        g, shape = flat_geometry(workload), _Shape.of(config, workload, self.w_bytes)
        mean, spread = expected_steps(workload, shape.tm)
        blocks = -(-workload.m // (shape.tm * shape.panels)) * -(-g.positions // shape.tn) * g.batch
        share = blocks / target.sms
        resident = max(1, _REGISTERS // (shape.registers * 32 * shape.warps))
        waves = max(1.0, share / resident)
        traffic = share * shape.panels * mean * 16 * (shape.tn * shape.x_bytes + shape.tm * shape.w_bytes) / L2_BYTES
        chain = waves * (mean + 1.5 * spread) / shape.slices * (_STEP + _LATENCY / shape.depth)
        sums = _FINISHED * shape.warps * shape.tm * shape.tn * min(share, resident)
        stored = share * shape.panels * shape.tm * shape.tn * shape.y_bytes / STORED
        both: float = (traffic**_OVERLAP + chain**_OVERLAP) ** (1 / _OVERLAP)
        return (FIXED + stored + sums + both) * (_FEW_BLOCKS if share < 0.75 else 1.0)

    def pack(
        self, weight: np.ndarray, bias: np.ndarray | None, workload: Workload, config: Config, target: Target
    ) -> Packed:
        workload = self._as_packed(workload)
        shape, taps = _Shape.of(config, workload, self.w_bytes), flat_geometry(workload).taps[0]
        packed = panel_steps(weight, shape.tm, run_of(workload), shape.panels, self.every, self.arithmetic)
        starts = taps[packed.starts].astype(np.int32).ravel()
        fragments = packed.fragments.view(np.uint32).ravel()
        return Packed((packed.heads.ravel(), starts, fragments, bias_array(bias, workload.m)))

    def kernel(self, workload: Workload, config: Config, packed: Packed, target: Target, symbol: str) -> Any:
        workload = self._as_packed(workload)
        g, shape = flat_geometry(workload), _Shape.of(config, workload, self.w_bytes)
        defines = (
            *(("SP_TM", shape.tm), ("SP_J", shape.j), ("SP_G", shape.tn // (8 * shape.j)), ("SP_PANELS", shape.panels)),
            *(("SP_SLICES", shape.slices), ("SP_DEPTH", shape.depth), ("SP_RUN", run_of(workload))),
            *(("SP_X_HALF", int(workload.layout_in.half)), ("SP_Y_HALF", int(workload.layout_out.half))),
            *(("SP_TF32", int(self.arithmetic == "tf32")), ("SP_BFLOAT", int(self.arithmetic == "bfloat16"))),
            *epilogue_defines(workload.epilogue),
        )
        panels = -(-workload.m // shape.tm)
        return Launch(
            "block_mma.cu",
            "block_mma",
            defines,
            (-(-panels // shape.panels), -(-g.positions // shape.tn), g.batch),
            32 * shape.warps,
            4 * shape.warps * shape.tm * (shape.tn + 4) if shape.slices > 1 else 0,
            1,
            panel_scalars(g, workload.m, panels),
            overlaps=True,
        )

    def _as_packed(self, workload: Workload) -> Workload:
        """The workload with the pattern that the panels show: with all columns, as if nothing were pruned."""
        if not self.every:
            return workload
        whole = msgspec.structs.replace(workload.pattern, kind="dense", block=(1, 1), density=1.0)
        return msgspec.structs.replace(workload, pattern=whole)


@dataclass(frozen=True)
class _Shape:
    """The knobs of a config as far as they fit together. j: neighbours that a lane reads at once."""

    tm: int
    tn: int
    panels: int
    slices: int
    depth: int
    j: int
    run: int
    x_bytes: int
    y_bytes: int
    w_bytes: int

    @staticmethod
    def of(config: Config, workload: Workload, w_bytes: int) -> _Shape:
        """The shape of a config: as many steps in flight as there are registers for, then as many panels, slices."""
        tm, tn = (int(size) for size in config.str("tile").split("x"))
        panels, slices = (int(count) for count in config.str("warps").split("-"))
        positions = flat_geometry(workload).positions
        j = next(j for j in (8, 4, 2) if positions % j == 0 and 8 * j <= tn)
        x_bytes, y_bytes = (2 if layout.half else 4 for layout in (workload.layout_in, workload.layout_out))
        depth = config.int("depth")
        shape = _Shape(tm, tn, panels, slices, depth, j, run_of(workload), x_bytes, y_bytes, w_bytes)
        while shape.registers > shape.available:
            if depth > 1:
                depth -= 1
            elif panels > 1:
                panels //= 2
            else:
                slices //= 2
            shape = _Shape(tm, tn, panels, slices, depth, j, shape.run, x_bytes, y_bytes, w_bytes)
        return shape

    @property
    def warps(self) -> int:
        return self.panels * self.slices

    @property
    def registers(self) -> int:
        """What a thread needs: sums, steps in flight (X, W, where X begins), pairs of rows."""
        step = self.tn * self.x_bytes // 8 + self.tm * self.w_bytes // 8 + (4 if self.run == 1 else 2)
        return self.tm * self.tn // 32 + self.depth * step + _MISCELLANEOUS

    @property
    def available(self) -> int:
        """What a thread may have: warps of a quarter of a multiprocessor share its registers."""
        return min(255, _REGISTERS // (128 * -(-self.warps // 4)) // 8 * 8)
