"""Sparse matrix times up to eight vectors (spmv.cu): lanes walk rows, X in shared memory.

    X -> shared memory
    for row of the warp (lpr lanes each): for 4 entries of a lane: n FMAs each; lanes added by shuffles

Requires: products of 1 to 8 tokens in plain layouts. Bound by the bandwidth of values and columns, 6 bytes a non-zero,
or 4 where all values are float16 (models that were stored so): they are widened exactly.
"""

from __future__ import annotations

import numpy as np
from sparsetvm.schedules.base import Packed, Template
from sparsetvm.schedules.cuda.epilogue import bias_array, epilogue_defines
from sparsetvm.schedules.cuda.launch import Launch

from sparsetvm.core.config import Config
from sparsetvm.core.layout import Plain
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload
from sparsetvm.formats.lane_rows import PER_LANE, interleaved_halves, pack_lane_rows
from sparsetvm.space.knobs import Ordered
from sparsetvm.space.space import Space

_MOST_TOKENS = 8
_BANKS = 32


class Spmv(Template):
    """Template cuda.spmv."""

    name = "cuda.spmv"
    version = 1

    def matches(self, workload: Workload, target: Target) -> bool:
        if target.kind != "cuda" or workload.op != "matmul" or workload.n > _MOST_TOKENS:
            return False
        layouts = (workload.layout_in, workload.layout_out, workload.residual_layout)
        sparse = workload.pattern.kind != "dense" and workload.nnz > 0
        return sparse and all(isinstance(layout, Plain) for layout in layouts)

    def space(self, workload: Workload, target: Target) -> Space:
        return Space(
            self.name,
            (Ordered("lanes", (8, 16, 32)), Ordered("warps", (4, 8, 16)), Ordered("ahead", (1, 2, 4))),
        )

    def default(self, workload: Workload, target: Target) -> Config:
        # Measured at 4096 x 4096 on an H200: two steps of 16 lanes and more for most rows, and one large block an SM.
        lanes = 16 if workload.nnz / workload.m >= 2 * 16 * PER_LANE else 8
        warps = next((v for v in (16, 8) if workload.m * lanes >= 0.9 * v * 32 * target.sms), 4)
        return Config.of(self.name, lanes=lanes, warps=warps, ahead=2)

    def pack(
        self, weight: np.ndarray, bias: np.ndarray | None, workload: Workload, config: Config, target: Target
    ) -> Packed:
        packed = pack_lane_rows(weight, config.int("lanes"), _BANKS // _tokens_a_read(workload.n))
        start = bias_array(bias, workload.m)[packed.order]
        half = interleaved_halves(packed)
        entries = (packed.values, packed.columns) if half is None else (half,)
        return Packed((*entries, packed.starts, packed.order, start), {"half": half is not None})

    def kernel(self, workload: Workload, config: Config, packed: Packed, target: Target, symbol: str) -> Launch:
        lanes, warps = config.int("lanes"), config.int("warps")
        read = _tokens_a_read(workload.n)
        shared = -(-workload.n // read) * read * workload.k * 4
        staged = shared <= target.shared
        defines = (
            ("SP_N", workload.n),
            ("SP_LPR", lanes),
            ("SP_WARPS", warps),
            ("SP_AHEAD", config.int("ahead")),
            ("SP_STAGED", int(staged)),
            ("SP_WIDE", int(workload.k > 1 << 16)),
            ("SP_HALF", int(packed.meta["half"])),
            *epilogue_defines(workload.epilogue),
        )
        blocks = -(-workload.m // (32 // lanes * warps))
        return Launch(
            "spmv.cu", "spmv", defines, (blocks, 1, 1), warps * 32, shared if staged else 0, 1,
            (workload.m, workload.k), overlaps=True,
        )  # fmt: skip


def _tokens_a_read(tokens: int) -> int:
    """Tokens that one read of X in shared memory brings."""
    return {1: 1, 2: 2}.get(tokens, 4)
