"""Products of two computed tensors in plain layout, as attention has them: Y[item] = A[item] B[item].

    block: BM x BN outputs of one item; for tile of BK columns of A (STAGES of them in flight, cp.async):
        thread: for 4 columns: 4 TM floats of A and 4 TN of B from shared memory, 4 TM * TN FMAs
    slices of warps share the columns of a tile; their sums are added in fixed order in shared memory

Nothing is packed or transposed: threads read A along its rows, four columns at once. Rows that are no multiple of 16
bytes (windows of 49 tokens) are copied float by float. Leading axes broadcast: those that both operands treat alike
are merged, and where B has one matrix for all rows of A, the items become rows.

Requires: leading axes that merge to at most three.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sparsetvm.schedules.cuda.launch import Launch
from sparsetvm.schedules.operators import BatchMatmul, merged_axes

from sparsetvm.core.target import Target
from sparsetvm.errors import SparseTvmError

__all__ = ["BatchMatmul", "batch_matmul_kernel", "batch_matmul_supported"]

_MOST_AXES = 3
# What the estimate below reckons with; it is not fitted to times. By the size of a thread's tile, the share of the FMA
# peak that its reads of shared memory allow (as in dense.py); cycles of a barrier with the first fragments behind it,
# and of a block's two ends; bytes that a multiprocessor gets from L2 in a cycle.
_EFFICIENCY = {64: 0.88, 32: 0.81, 16: 0.71}
_STEP, _ENDS, _L2 = 180, 1000, 24


@dataclass(frozen=True)
class _Tiles:
    """The tile of a block, that of a thread, the shares of K, tiles in flight."""

    bm: int
    bn: int
    bk: int
    tm: int
    tn: int
    slices: int
    stages: int

    @property
    def threads(self) -> int:
        return self.bm * self.bn // (self.tm * self.tn) * self.slices

    @property
    def shared(self) -> int:
        """Bytes: the stages (rows of A are padded by four floats), later the sums of the slices."""
        return 4 * max(self.stages * (self.bm * (self.bk + 4) + self.bk * self.bn), self.slices * self.bm * self.bn)


_SHAPES = (
    _Tiles(32, 32, 32, 4, 4, 4, 3),
    _Tiles(32, 64, 32, 4, 4, 2, 3),
    _Tiles(64, 32, 32, 4, 4, 2, 3),
    _Tiles(64, 64, 32, 8, 4, 2, 3),
    _Tiles(128, 64, 16, 8, 8, 1, 3),
)


def batch_matmul_supported(product: BatchMatmul) -> bool:
    """True when `batch_matmul_kernel` can implement it."""
    return len(_axes(product)[1]) <= _MOST_AXES


def batch_matmul_kernel(product: BatchMatmul, target: Target, symbol: str) -> Launch:
    """Launch (A, B, Y) of the shapes that `product` names. Raises SparseTvmError when it is not supported."""
    m, axes = _axes(product)
    if len(axes) > _MOST_AXES:
        raise SparseTvmError(
            f"no kernel for {product}: leading axes alternate between the operands {len(axes)} times",
            hint="reshape the operands so that axes with one entry are neighbours",
        )
    k, n, items = product.k, product.n, math.prod(size for size, _ in axes)
    tiles = min(_SHAPES, key=lambda tiles: _cost(tiles, items, m, k, n, target))
    m_tiles, n_tiles = -(-m // tiles.bm), -(-n // tiles.bn)
    axes = [(1, (0, 0))] * (_MOST_AXES - len(axes)) + axes
    sizes, (a_steps, b_steps) = [size for size, _ in axes], zip(*(steps for _, steps in axes), strict=True)
    defines = (
        *(("SP_BM", tiles.bm), ("SP_BN", tiles.bn), ("SP_BK", tiles.bk), ("SP_TM", tiles.tm), ("SP_TN", tiles.tn)),
        *(("SP_SLICES", tiles.slices), ("SP_STAGES", tiles.stages)),
        *(("SP_A4", int(k % 4 == 0)), ("SP_B4", int(n % 4 == 0))),
    )
    return Launch(
        "batch_matmul.cu",
        "batch_matmul",
        defines,
        (items * m_tiles * n_tiles, 1, 1),
        tiles.threads,
        tiles.shared,
        scalars=(m, k, n, m_tiles, n_tiles, *sizes[1:], *a_steps, *b_steps),
        overlaps=True,
    )


def _axes(product: BatchMatmul) -> tuple[int, list[tuple[int, tuple[int, ...]]]]:
    """Rows of an item; its axes as `merged_axes` gives them: entries, floats from one to the next in A and in B."""
    m, k, n = product.m, product.k, product.n
    if math.prod(product.b_shape[:-2]) == 1:
        return m * math.prod(product.batch), []
    return m, merged_axes(product.batch, [(product.a_shape[:-2], m * k), (product.b_shape[:-2], k * n)])


def _cost(tiles: _Tiles, items: int, m: int, k: int, n: int, target: Target) -> float:
    """Estimated cycles of the multiprocessor that has the most blocks."""
    blocks = items * -(-m // tiles.bm) * -(-n // tiles.bn)
    share = -(-blocks // max(1, target.sms))
    steps = -(-k // tiles.bk)
    multiply = steps * tiles.bk * tiles.bm * tiles.bn / (128 * _EFFICIENCY[tiles.tm * tiles.tn])
    copy = steps * tiles.bk * 4 * (tiles.bm + tiles.bn) / _L2
    idle = max(1.0, 4 * 32 / (share * tiles.threads))  # schedulers without a warp
    return share * max(multiply * idle, copy) + steps * _STEP + _ENDS
