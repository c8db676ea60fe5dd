"""Block patterns as kernels for tensor cores want them: CSR whose entries are blocks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsetvm.core.workload import Workload

BLOCK_COMPETITORS = {"triton-block": "float16", "triton-block-tf32": "float32"}
"""Name in a benchmark -> type of W, X and Y; see triton_block.py."""
TWO_FOUR = "torch-2:4"
"""Name of PyTorch's product with a 2:4 weight in float16."""
_LEAST = 16  # rows and columns of a product that tensor cores take


@dataclass(frozen=True)
class BlockCsr:
    """Blocks of an (m, k) matrix that have a non-zero, by block row, then by block column.

    values: (blocks, r, c). columns: (blocks,) int32, in blocks. starts: (m / r + 1,) int32, first block of each row.
    """

    values: np.ndarray
    columns: np.ndarray
    starts: np.ndarray


def tensor_core_block(workload: Workload) -> tuple[int, int] | None:
    """The block of a product whose pattern is made of whole blocks of at least 16 x 16, else None."""
    r, c = workload.pattern.block
    whole = workload.conv is None and workload.pattern.kind == "block" and not workload.m % r and not workload.k % c
    return (r, c) if whole and min(r, c) >= _LEAST else None


def block_csr(weight: np.ndarray, block: tuple[int, int]) -> BlockCsr:
    """The blocks of a weight whose sizes are multiples of the block's."""
    (m, k), (r, c) = weight.shape, block
    blocks = weight.reshape(m // r, r, k // c, c).swapaxes(1, 2)
    kept = blocks.any(axis=(2, 3))
    starts = np.concatenate([[0], np.cumsum(kept.sum(axis=1))])
    return BlockCsr(np.ascontiguousarray(blocks[kept]), np.nonzero(kept)[1].astype(np.int32), starts.astype(np.int32))
