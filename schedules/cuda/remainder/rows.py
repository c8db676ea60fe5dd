"""How the threads of a GPU share the rows of a layer norm or softmax."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sparsetvm.core.layout import Layout, Tiled

_WARP_VALUES = 256  # rows of up to this many values are work for one warp
_BLOCK = 128  # threads of a block of such warps
_KEPT = 16  # values that a thread keeps in registers


@dataclass(frozen=True)
class Rows:
    """Macros, grid, block and scalars (tokens, features, floats between features) of a kernel of rows.cu."""

    defines: tuple[tuple[str, int], ...]
    blocks: int
    block: int
    scalars: tuple[int, int, int]


def share_rows(layout: Layout, shape: tuple[int, ...]) -> Rows:
    """Rows of a plain matrix: a warp or a block for each. Tokens of Tiled: a block for 4, whose features lie apart."""
    n = shape[-1]
    if isinstance(layout, Tiled):
        tokens, stride, together = layout.tiles * layout.lanes, layout.lanes, 4
        # A warp reads 8 rows of 16 bytes: with as many as 16 warps, a block has all of 768 features in 6 steps.
        threads = min(512, max(32, 32 * math.ceil(n * together / (32 * 4))))
    else:
        tokens, stride, together = math.prod(shape[:-1]), 1, 1
        threads = 32 if n <= _WARP_VALUES else 256
    each = -(-n * together // threads)
    block = _BLOCK if threads == 32 else threads
    groups = -(-tokens // together)
    defines = (
        *(("SP_THREADS", threads), ("SP_TOKENS", together), ("SP_BLOCK", block)),
        ("SP_KEEP", each if each <= _KEPT else 0),
    )
    return Rows(defines, -(-groups * threads // block), block, (tokens, n, stride))
