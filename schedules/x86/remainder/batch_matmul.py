"""Products of two computed tensors in plain layout, as attention has them: Y[b] = A[b] B[b].

    for each item of the batch, block of rows, block of columns:
        MR x NR accumulators; for k: NR vectors of row k of B, MR broadcasts of A, MR * NR FMAs

Lanes run along the rows of B, so that nothing is packed or transposed. The columns of a block stay in L1 for all its
rows (K * NR * lanes floats: 16 kB for 64 features of a head). The register tile is that of Goto and van de Geijn's
GEMM.
"""

from __future__ import annotations

import math

from sparsetvm.schedules.operators import BatchMatmul
from sparsetvm.schedules.x86 import tir
from tvm.tirx.script import builder as B

from sparsetvm.core.target import Target

__all__ = ["BatchMatmul", "batch_matmul_kernel"]

_MOST_VECTORS, _MOST_ROWS = 4, 14
_CHUNKS_PER_THREAD = 4


def batch_matmul_kernel(product: BatchMatmul, target: Target, symbol: str) -> tir.Expr:
    """PrimFunc (A, B, Y) of the shapes that `product` names."""
    return _Kernel(product, target).build(symbol)


class _Kernel:
    def __init__(self, product: BatchMatmul, target: Target) -> None:
        self.p, self.threads, self.lanes = product, target.threads, target.lanes
        vectors = -(-product.n // self.lanes)
        self.nr = -(-vectors // -(-vectors // min(_MOST_VECTORS, target.registers // 8)))  # equal blocks
        self.mr = min(_MOST_ROWS, (target.registers - 1 - self.nr) // self.nr)

    def build(self, symbol: str) -> tir.Expr:
        p = self.p
        with tir.prim_func(symbol) as builder:
            self.a, self.b, self.y = tir.flat_args(A=p.a_shape, B=p.b_shape, Y=p.out_shape)
            items, blocks = math.prod(p.batch), -(-p.m // self.mr)
            chunks = 1 if self.threads == 1 else min(blocks, max(1, _CHUNKS_PER_THREAD * self.threads // items))
            rows = -(-blocks // chunks) * self.mr
            whole, rest = divmod(p.m, rows)
            if whole:
                with tir.outer(items * whole, self.threads) as at:
                    self._chunk(at // whole, at % whole * rows, rows)
            if rest:
                with tir.outer(items, self.threads) as item:
                    self._chunk(item, tir.i32(whole * rows), rest)
        return builder.get()

    def _chunk(self, item: tir.Expr, first: tir.Expr, rows: int) -> None:
        """`rows` rows of one item of the batch."""
        p = self.p
        a = tir.let(p.offset(item, p.a_shape) + first * p.k)
        b, y = tir.let(p.offset(item, p.b_shape)), tir.let(item * (p.m * p.n) + first * p.n)
        width = self.nr * self.lanes
        for columns in range(0, p.n, width):
            if rows // self.mr:
                with B.serial(rows // self.mr) as at:
                    self._block(a + at * (self.mr * p.k), b, y + at * (self.mr * p.n), self.mr, columns)
            if rows % self.mr:
                done = rows - rows % self.mr
                self._block(a + done * p.k, b, y + done * p.n, rows % self.mr, columns)

    def _block(self, a: tir.Expr, b: tir.Expr, y: tir.Expr, rows: int, columns: int) -> None:
        """A register tile; a, b and y are offsets of its first row of A, of B and of its first row of Y."""
        p, lanes = self.p, self.lanes
        starts = range(columns, min(columns + self.nr * lanes, p.n), lanes)
        sums = tir.Registers(rows * len(starts), lanes, fill=0.0)
        with B.serial(p.k) as k:
            loaded = [tir.let(tir.vload_lanes(self.b, b + k * p.n + at, lanes, 0, p.n - at)) for at in starts]
            for row in range(rows):
                factor = tir.let(tir.splat(self.a[a + (row * p.k + k)], lanes))
                for at, vector in enumerate(loaded):
                    index = row * len(starts) + at
                    sums[index] = sums[index] + factor * vector
        for row in range(rows):
            for at, start in enumerate(starts):
                tir.vstore_lanes(self.y, sums[row * len(starts) + at], y + (row * p.n + start), lanes, 0, p.n - start)
