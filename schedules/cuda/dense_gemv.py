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
_WANTED, _LONGEST = 12, 1024  # of default configs: warps per multiprocessor, columns of K for a warp


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
        """Two rows, K split until there are warps enough and no share of K takes more than two rounds of loads.

        Both bounds chosen by times of 5 matrices of 768 x 768 to 16384 x 4096 with 1, 4 and 8 tokens on an H200; over
        the same times this is 1 % slower than the fastest config in the geometric mean, 10 % at worst.
        """
        pairs = -(-workload.m // 2)
        enough = (s for s in (1, 2, 4) if pairs * s >= _WANTED * target.sms and workload.k <= _LONGEST * s)
        return Config.of(self.name, rows=2, split=next(enough, 8))

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
        return Launch(
            "dense_gemv.cu", "dense_gemv", defines, (blocks, 1, 1), 32 * _WARPS, scalars=scalars, overlaps=True
        )
