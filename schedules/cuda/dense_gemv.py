"""Dense product with few tokens: reading the weights once is the bound.

    warp: rows of W, a share of K: for 16 bytes of each row: FMAs with all tokens; sum over lanes, then over the shares

Requires: at most 8 tokens, plain layouts. Weights are the rows of W, padded to 16 bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sparsetvm.schedules.base import Packed, Template
from sparsetvm.schedules.cuda.epilogue import bias_array, epilogue_defines
from sparsetvm.schedules.cuda.launch import Launch

from sparsetvm.core.config import Config
from sparsetvm.core.layout import Plain
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload
from sparsetvm.space.knobs import Ordered
from sparsetvm.space.space import Space

_MOST_TOKENS = 8
_WARPS = 8  # of a block
_READS = 8  # 16-byte loads of weights that a thread has in flight


class DenseGemv(Template):
    """Template cuda.dense_gemv."""

    name = "cuda.dense_gemv"
    version = 1
    dense = True

    def matches(self, workload: Workload, target: Target) -> bool:
        layouts = (workload.layout_in, workload.layout_out, workload.residual_layout)
        plain = all(isinstance(layout, Plain) for layout in layouts)
        return target.kind == "cuda" and workload.op == "matmul" and workload.n <= _MOST_TOKENS and plain

    def space(self, workload: Workload, target: Target) -> Space:
        return Space(self.name, (Ordered("rows", (1, 2, 4)), Ordered("split", (1, 2, 4, 8))))

    def default(self, workload: Workload, target: Target) -> Config:
        """Rows shared by the tokens that need them, K split until every multiprocessor has its warps."""
        rows = 1 if workload.n <= 2 else 2
        wanted = 32 * target.sms
        longest = workload.k // 256  # a share is worth two loads of every lane
        split = next((s for s in (1, 2, 4) if -(-workload.m // rows) * s >= wanted or 2 * s > longest), 8)
        return Config.of(self.name, rows=rows, split=split)

    def pack(
        self, weight: np.ndarray, bias: np.ndarray | None, workload: Workload, config: Config, target: Target
    ) -> Packed:
        padded = np.zeros((workload.m, -(-workload.k // 4) * 4), np.float32)
        padded[:, : workload.k] = weight
        return Packed((padded.ravel(), bias_array(bias, workload.m)))

    def kernel(self, workload: Workload, config: Config, packed: Packed, target: Target, symbol: str) -> Any:
        rows, split, k = config.int("rows"), config.int("split"), workload.k
        defines = (
            *(("SP_TOKENS", workload.n), ("SP_ROWS", rows), ("SP_SPLIT", split), ("SP_UNROLL", _READS // rows)),
            *(("SP_ALIGNED", int(k % 4 == 0)), *epilogue_defines(workload.epilogue)),
        )
        blocks = -(-workload.m // (rows * _WARPS // split))
        scalars = (workload.m, k, -(-k // 4) * 4)
        return Launch("dense_gemv.cu", "dense_gemv", defines, (blocks, 1, 1), 32 * _WARPS, scalars=scalars)
