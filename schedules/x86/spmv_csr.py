"""Sparse matrix times vector (one token) as plain CSR: four scalar chains per row.

Requires: N = 1, plain layouts; any x86 CPU. Slower than the lookup kernel where that exists, except for very few
non-zeros; on AVX2 machines it is the sparse choice.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sparsetvm.schedules.base import Packed, Template
from sparsetvm.schedules.x86.arguments import initial_sums, layer_args
from sparsetvm.schedules.x86.vector_out import reads_few_tokens, write_vector_output

from sparsetvm.core.config import Config
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload
from sparsetvm.space.knobs import Ordered
from sparsetvm.space.space import Space


class SpmvCsr(Template):
    """Template x86.spmv_csr."""

    name = "x86.spmv_csr"
    version = 2

    def matches(self, workload: Workload, target: Target) -> bool:
        sparse = workload.pattern.kind != "dense" and workload.nnz > 0
        return sparse and reads_few_tokens(workload) and workload.n == 1

    def space(self, workload: Workload, target: Target) -> Space:
        return Space(self.name, (Ordered("chains", (1, 2, 4, 8)),))

    def default(self, workload: Workload, target: Target) -> Config:
        return Config.of(self.name, chains=4)

    def pack(
        self, weight: np.ndarray, bias: np.ndarray | None, workload: Workload, config: Config, target: Target
    ) -> Packed:
        rows, columns = np.nonzero(weight)
        pointer = np.zeros(workload.m + 1, np.int32)
        pointer[1:] = np.cumsum(np.bincount(rows, minlength=workload.m))
        # Threads share the non-zeros; the rows themselves cost a little, too.
        cost = pointer + np.arange(workload.m + 1)
        bounds = np.searchsorted(cost, np.arange(target.threads + 1) * (cost[-1] / target.threads)).astype(np.int32)
        start = initial_sums(bias, workload.m)
        return Packed((pointer, columns.astype(np.int32), weight[rows, columns].astype(np.float32), start, bounds))

    def kernel(self, workload: Workload, config: Config, packed: Packed, target: Target, symbol: str) -> Any:
        from sparsetvm.schedules.x86 import tir
        from tvm import tirx
        from tvm.tirx.script import builder as tb

        chains = config.int("chains")
        with tir.prim_func(symbol) as ib:
            x, r, (pointer, columns, values, bias, bounds), y = layer_args(workload, packed)
            stride = -(-workload.m // target.lanes) * target.lanes
            sums = tir.scratch(stride)
            with (
                tir.outer(target.threads, target.threads) as part,
                tb.serial(bounds[part + 1] - bounds[part]) as i,
            ):
                row = tb.Bind(bounds[part] + i)
                p0 = tb.Bind(pointer[row])
                length = tb.Bind(pointer[row + 1] - p0)
                acc = [tb.alloc_buffer((1,), "float32", scope="local") for _ in range(chains)]
                for c in range(chains):
                    tb.buffer_store(acc[c], bias[row] if c == 0 else tir.f32(0.0), [0])
                whole = tb.Bind(tirx.floordiv(length, chains))
                with tb.serial(whole) as q:
                    for c in range(chains):
                        at = p0 + q * chains + c
                        tb.buffer_store(acc[c], acc[c][0] + values[at] * x[columns[at]], [0])
                with tb.serial(length - whole * chains) as q:
                    at = p0 + whole * chains + q
                    tb.buffer_store(acc[0], acc[0][0] + values[at] * x[columns[at]], [0])
                total = acc[0][0]
                for c in range(1, chains):
                    total = total + acc[c][0]
                tb.buffer_store(sums, total, [row])
            write_vector_output(sums, stride, r, y, workload, target.lanes)
        return ib.get()
