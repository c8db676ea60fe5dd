"""A block-sparse product on tensor cores, in Triton: what a user of PyTorch would write for a block pattern.

A program owns one row of blocks and a tile of columns of Y and multiplies its blocks, found by CSR, with their rows of
X. Tiles and warps are tried in four ways; the fastest counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl

from benchlib.block_csr import block_csr

_TILES = ((32, 2), (64, 4), (128, 4), (128, 8))  # columns of Y, warps
_LEAST_TILE = min(columns for columns, _ in _TILES)


@triton.jit
def _multiply(
    values, columns, starts, x, y, n,
    R: tl.constexpr, C: tl.constexpr, TILE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    rows, inner = tl.arange(0, R), tl.arange(0, C)
    at = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = (at < n)[None, :]
    total = tl.zeros((R, TILE), tl.float32)
    for number in range(tl.load(starts + row), tl.load(starts + row + 1)):
        block = tl.load(values + number * (R * C) + rows[:, None] * C + inner[None, :])
        first = tl.load(columns + number) * C
        part = tl.load(x + (first + inner)[:, None] * n + at[None, :], mask=inside, other=0.0)
        total = tl.dot(block, part, total, input_precision=PRECISION)
    tl.store(y + (row * R + rows)[:, None] * n + at[None, :], total.to(y.dtype.element_ty), mask=inside)


def block_products(
    weight: np.ndarray, block: tuple[int, int], x: np.ndarray, dtype: str, device: str = "cuda"
) -> list[Callable[[], Any]]:
    """Calls that return Y[m, n] = W X for logical x[n, k], one per tile. Sums are float32.

    dtype: type of W, X and Y: "float16", or "float32", whose operands are rounded to TF32.
    """
    csr, kind = block_csr(weight, block), getattr(torch, dtype)
    values = torch.from_numpy(csr.values).to(device, kind)
    columns, starts = (torch.from_numpy(array).to(device) for array in (csr.columns, csr.starts))
    tokens = torch.from_numpy(np.ascontiguousarray(x.T)).to(device, kind)
    n = len(x)
    y = torch.empty(len(weight), n, dtype=kind, device=device)

    def call(tile: int, warps: int) -> Callable[[], Any]:
        grid = (len(weight) // block[0], triton.cdiv(n, tile))

        def run() -> Any:
            _multiply[grid](values, columns, starts, tokens, y, n, *block, tile, "tf32", num_warps=warps)
            return y

        return run

    most = max(_LEAST_TILE, triton.next_power_of_2(n))
    return [call(tile, warps) for tile, warps in _TILES if tile <= most]
