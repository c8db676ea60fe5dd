"""Dense matrix times vector (one token): lanes are output rows, x[k] is broadcast.

    for block of U vectors of rows: for k: U FMAs with weights read in order

Requires: N = 1, plain layouts. Weights packed [rows / (U * lanes)][K][U * lanes]; bound by reading them once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sparsetvm.schedules.base import Packed, Template
from sparsetvm.schedules.x86.arguments import layer_args
from sparsetvm.schedules.x86.vector_out import is_matrix_vector, write_vector_output

from sparsetvm.core.config import Config
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload
from sparsetvm.space.knobs import Ordered
from sparsetvm.space.space import Space


class DenseGemv(Template):
    """Template x86.dense_gemv."""

    name = "x86.dense_gemv"
    version = 1
    dense = True

    def matches(self, workload: Workload, target: Target) -> bool:
        return is_matrix_vector(workload)

    def space(self, workload: Workload, target: Target) -> Space:
        return Space(self.name, (Ordered("vectors", (1, 2, 4, 8)), Ordered("unroll", (1, 2, 4))))

    def default(self, workload: Workload, target: Target) -> Config:
        vectors = 8 if workload.m >= 8 * target.lanes * target.threads else 2
        return Config.of(self.name, vectors=vectors, unroll=2)

    def pack(
        self, weight: np.ndarray, bias: np.ndarray | None, workload: Workload, config: Config, target: Target
    ) -> Packed:
        width = config.int("vectors") * target.lanes
        rows = -(-workload.m // width) * width
        padded = np.zeros((rows, workload.k), np.float32)
        padded[: workload.m] = weight
        start = np.zeros(rows, np.float32)
        if bias is not None:
            start[: workload.m] = bias
        blocks = padded.reshape(rows // width, width, workload.k).transpose(0, 2, 1)
        return Packed((np.ascontiguousarray(blocks).ravel(), start))

    def kernel(self, workload: Workload, config: Config, packed: Packed, target: Target, symbol: str) -> Any:
        from sparsetvm.schedules.x86 import tir
        from tvm.tirx.script import builder as tb

        lanes, vectors = target.lanes, config.int("vectors")
        width, unroll, k = vectors * lanes, config.int("unroll"), workload.k
        start = packed.arrays[1]
        with tir.prim_func(symbol) as ib:
            x, r, (w, b), y = layer_args(workload, packed)
            sums = tir.scratch(start.size)
            with tir.outer(start.size // width, target.threads) as block:
                # Two chains per vector when few vectors would leave the FMA latency exposed.
                chains = 2 if vectors < 8 else 1
                acc = tir.Registers(vectors * chains, lanes)
                for v in range(vectors * chains):
                    first = tir.vload(b, block * width + v * lanes, lanes)
                    acc[v] = first if v < vectors else tir.splat(0.0, lanes)

                def step(at: Any, chain: int, block: Any = block, acc: Any = acc) -> None:
                    value = tir.let(tir.splat(x[at], lanes))
                    for v in range(vectors):
                        i = chain * vectors + v
                        acc[i] = acc[i] + tir.vload(w, (block * k + at) * width + v * lanes, lanes) * value

                with tb.serial(k // unroll) as q:
                    for u in range(unroll):
                        step(q * unroll + u, u % chains)
                with tb.serial(k % unroll) as q:
                    step(k // unroll * unroll + q, 0)
                for v in range(vectors):
                    total = acc[v] + acc[vectors + v] if chains == 2 else acc[v]
                    tir.vstore(sums, total, block * width + v * lanes, lanes)
            write_vector_output(sums, None, r, y, workload, lanes)
        return ib.get()
