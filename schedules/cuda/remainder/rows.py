"""How the threads of a GPU share the rows of a layer norm or softmax."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sparsetvm.core.layout import Layout, Tiled
from sparsetvm.core.target import Target

_WARP_VALUES = 256  # rows of up to this many values are work for one warp
_BLOCK = 128  # threads of a block of such warps
_KEPT = 16  # values that a thread keeps in registers
_WORTH = 64  # features that a block of a cluster should have
_BLOCKS = 2  # of Tiled per multiprocessor, up to which more of them share the features of a token


@dataclass(frozen=True)
class Rows:
    """Macros, grid, block, shared memory (bytes) and cluster of a kernel of rows.cu.

    scalars: tokens, features, floats between features; share: features of one block of a cluster.
    """

    defines: tuple[tuple[str, int], ...]
    blocks: int
    block: int
    scalars: tuple[int, int, int]
    share: int
    cluster: int = 1
    shared: int = 0


def share_rows(layout: Layout, shape: tuple[int, ...], target: Target) -> Rows:
    """Rows of a plain matrix: a warp or a block for each. Tokens of Tiled: a cluster of blocks for 8 (or 4) of them."""
    n = shape[-1]
    if isinstance(layout, Tiled):
        tokens, stride = layout.tiles * layout.lanes, layout.lanes
        together = 8 if tokens % 8 == 0 else 4  # 8 are what one access of the L2 cache brings
        wide = (c for c in (8, 4, 2) if tokens // together * c <= _BLOCKS * target.sms and n >= _WORTH * c)
        cluster = next(wide, 1)
        share = -(-n // cluster)
        # With as many as 16 warps, a thread has few features.
        threads = min(512, max(32, 32 * math.ceil(share * together / (32 * 4))))
    else:
        tokens, stride, together, cluster, share = math.prod(shape[:-1]), 1, 1, 1, n
        threads = 32 if n <= _WARP_VALUES else 256
    each = -(-share * together // threads)
    # Warps of tokens in Tiled always are whole blocks: those of a cluster have the same tokens.
    block = _BLOCK if threads == 32 and cluster == 1 else threads
    groups = -(-tokens // together)
    defines = (
        *(("SP_THREADS", threads), ("SP_TOKENS", together), ("SP_BLOCK", block), ("SP_CLUSTER", cluster)),
        ("SP_KEEP", each if each <= _KEPT else 0),
    )
    # Moments of the tokens, and what the warps of a block reduce through (static where there is no cluster).
    shared = 4 * together * (4 + threads // 32) if cluster > 1 else 0
    return Rows(defines, -(-groups * threads // block) * cluster, block, (tokens, n, stride), share, cluster, shared)
