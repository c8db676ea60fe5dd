"""Dense matrix times few tokens: lanes are output rows, x[k] is broadcast.

    for block of U vectors of rows: for k: U FMAs per token with weights read in order

Requires: at most 4 tokens, plain layouts. Weights packed [rows / (U * lanes)][K][U * lanes]; reading them is the bound.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sparsetvm.schedules.base import Packed, Template
from sparsetvm.schedules.x86.arguments import layer_args
from sparsetvm.schedules.x86.vector_out import reads_few_tokens, write_vector_output

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
        return reads_few_tokens(workload)

    def space(self, workload: Workload, target: Target) -> Space:
        vectors = tuple(v for v in (1, 2, 4, 8) if v * workload.n <= target.registers // 2)
        return Space(self.name, (Ordered("vectors", vectors), Ordered("unroll", (1, 2, 4))))

    def default(self, workload: Workload, target: Target) -> Config:
        most = max(int(v) for v in self.space(workload, target).knobs[0].values)
        few = 1 if workload.m <= target.lanes else min(most, 2)  # rows of zeros cost as much as others
        vectors = most if workload.m >= most * target.lanes * target.threads else few
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
        width, unroll, k, tokens = vectors * lanes, config.int("unroll"), workload.k, range(workload.n)
        stride = packed.arrays[1].size
        with tir.prim_func(symbol) as ib:
            x, r, (w, b), y = layer_args(workload, packed)
            sums = tir.scratch(len(tokens) * stride)
            with tir.outer(stride // width, target.threads) as block:
                # Two chains per vector when few vectors would leave the FMA latency exposed.
                chains = 2 if vectors * len(tokens) < 8 else 1
                acc = [tir.Registers(vectors * chains, lanes, fill=0.0) for _ in tokens]
                for v in range(vectors):
                    first = tir.let(tir.vload(b, block * width + v * lanes, lanes))
                    for token in tokens:
                        acc[token][v] = first

                def step(at: Any, chain: int, block: Any = block, acc: Any = acc) -> None:
                    values = [tir.let(tir.splat(x[token * k + at], lanes)) for token in tokens]
                    for v in range(vectors):
                        i = chain * vectors + v
                        weights = tir.let(tir.vload(w, (block * k + at) * width + v * lanes, lanes))
                        for token in tokens:
                            acc[token][i] = acc[token][i] + weights * values[token]

                with tb.serial(k // unroll) as q:
                    for u in range(unroll):
                        step(q * unroll + u, u % chains)
                with tb.serial(k % unroll) as q:
                    step(k // unroll * unroll + q, 0)
                for token in tokens:
                    for v in range(vectors):
                        total = acc[token][v] + acc[token][vectors + v] if chains == 2 else acc[token][v]
                        tir.vstore(sums, total, token * stride + block * width + v * lanes, lanes)
            write_vector_output(sums, stride, r, y, workload, lanes)
        return ib.get()
