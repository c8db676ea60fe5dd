"""Sparse matrix times up to eight vectors (spmv.cu): lanes walk rows, X in shared memory.

    first `ahead` steps of the row -> registers, while the kernel before this one still runs
    X -> shared memory
    for row of the warp (`lanes` lanes each): for 4 entries of a lane: n FMAs each; lanes added by shuffles

Requires: products of 1 to 8 tokens in plain layouts. A non-zero is 6 bytes, or 4 where all values are float16 (models
that were stored so): they are widened exactly. Of kernels that follow each other, that traffic overlaps the kernel
before; then a row of 4096 x 4096 at 90 % takes as long as copying X to every multiprocessor and reading it once a
non-zero, half a microsecond each, and the launch.
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
_FEW_A_ROW = 48  # non-zeros, below which eight lanes do as well as 16
# Clocks of what weights do not matter for (launch, X to shared memory), for each further token; products of a clock and
# multiprocessor, bytes of weights from L2 (while the kernel before runs) and from memory. By what kernels of one token
# take that leave out one part after the other (H200, 4096 x 4096 at 90 %); memory by its data sheet.
_FIXED, _TOKEN, _PRODUCTS, _L2_BYTES, _MEMORY_BYTES = 2380, 350, 10.7, 54, 18
_ENTRY_BYTES = 6
_MOST_IMBALANCE = 1.5  # longer rows than that many means are too few to choose by


def is_sparse_tokens(workload: Workload, target: Target, most: int) -> bool:
    """True for a product of a pruned weight with up to `most` tokens, all tensors plain, on a GPU."""
    if target.kind != "cuda" or workload.op != "matmul" or workload.n > most:
        return False
    layouts = (workload.layout_in, workload.layout_out, workload.residual_layout)
    sparse = workload.pattern.kind != "dense" and workload.nnz > 0
    return sparse and all(isinstance(layout, Plain) for layout in layouts)


class Spmv(Template):
    """Template cuda.spmv."""

    name = "cuda.spmv"
    version = 2

    def matches(self, workload: Workload, target: Target) -> bool:
        return is_sparse_tokens(workload, target, _MOST_TOKENS)

    def space(self, workload: Workload, target: Target) -> Space:
        return Space(
            self.name,
            (Ordered("lanes", (8, 16, 32)), Ordered("warps", (4, 8, 16)), Ordered("ahead", (1, 2, 4, 8))),
        )

    def default(self, workload: Workload, target: Target) -> Config:
        """Of one token or two, all of a row on its way to registers where that fits; blocks for all multiprocessors.

        Measured on an H200: one token, 512 to 4096 squared, 90 and 95 %; more, 1024 and 4096 squared.
        """
        row, few = workload.nnz / workload.m, workload.n <= 2
        lanes = 16 if row >= _FEW_A_ROW else 8
        fills = workload.m * lanes >= 0.9 * 16 * 32 * target.sms
        warps = 16 if fills or (not few and lanes == 16) else 8
        longest = row * min(workload.pattern.row_imbalance, _MOST_IMBALANCE)
        ahead = next((v for v in (1, 2, 4) if v * lanes * PER_LANE >= longest), 8) if few else 2
        return Config.of(self.name, lanes=lanes, warps=warps, ahead=ahead)

    def pack(
        self, weight: np.ndarray, bias: np.ndarray | None, workload: Workload, config: Config, target: Target
    ) -> Packed:
        lanes, read = config.int("lanes"), _tokens_a_read(workload.n)
        packed = pack_lane_rows(weight, lanes, _BANKS // read, _column_unit(workload, target))
        start = bias_array(bias, workload.m)[packed.order]
        half = interleaved_halves(packed)
        entries = (packed.values, packed.columns) if half is None else (half,)
        return Packed(
            (*entries, packed.starts, packed.order, start), {"half": half is not None, "most_steps": packed.most_steps}
        )

    def kernel(self, workload: Workload, config: Config, packed: Packed, target: Target, symbol: str) -> Launch:
        lanes, warps, ahead = config.int("lanes"), config.int("warps"), config.int("ahead")
        staged, once = _shared(workload) <= target.shared, packed.meta["most_steps"] <= ahead
        # 64 registers a thread let two kernels share a multiprocessor; more tokens, or long rows, need more.
        threads = 1024 if workload.n == 1 and (once or ahead <= 4) else 512
        defines = (
            ("SP_N", workload.n),
            ("SP_LPR", lanes),
            ("SP_WARPS", warps),
            ("SP_AHEAD", ahead),
            ("SP_ONCE", int(once)),
            ("SP_RESIDENT", threads // (32 * warps)),
            ("SP_STAGED", int(staged)),
            ("SP_WIDE", int(workload.k > 1 << 16)),
            ("SP_HALF", int(packed.meta["half"])),
            ("SP_BYTES", int(_column_unit(workload, target) > 1)),
            *epilogue_defines(workload.epilogue),
        )
        blocks = -(-workload.m // (32 // lanes * warps))
        return Launch(
            "spmv.cu", "spmv", defines, (blocks, 1, 1), warps * 32, _shared(workload) if staged else 0, 1,
            (workload.m, workload.k), overlaps=True,
        )  # fmt: skip


def spmv_clocks(workload: Workload, target: Target) -> float:
    """What a launch is expected to take, to compare with kernels that make use of zeros in X."""
    size = workload.nnz * _ENTRY_BYTES
    rate = _MEMORY_BYTES if workload.cold or size > target.l2 else _L2_BYTES
    products = workload.nnz * (1 + 0.25 * (workload.n - 1)) / _PRODUCTS
    return _FIXED + _TOKEN * (workload.n - 1) + (products + size / rate) / target.sms


def _shared(workload: Workload) -> int:
    """Bytes of X in shared memory."""
    read = _tokens_a_read(workload.n)
    return -(-workload.n // read) * read * workload.k * 4


def _column_unit(workload: Workload, target: Target) -> int:
    """What columns are stored as multiples of: bytes of X in shared memory, where 16 bits hold them, else columns."""
    unit = 4 * _tokens_a_read(workload.n)
    return unit if workload.k * unit <= 1 << 16 and _shared(workload) <= target.shared else 1


def _tokens_a_read(tokens: int) -> int:
    """Tokens that one read of X in shared memory brings."""
    return {1: 1, 2: 2}.get(tokens, 4)
