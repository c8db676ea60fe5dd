"""Fused multi-head attention on Tiled activations, [features][tokens]: a block has 8 or 16 queries of one head.

    scores in shared memory: warps of 8 queries x 128 keys, K read along its tokens
    exp(score - largest), sums: a warp for a query
    Y = scores V: 128 keys of V in shared memory, the next ones on their way; warps share the keys, added in order

Requires: Q, K, V and Y in Tiled with a single tile, head h in columns h * head_dim and on; with several images, seq a
multiple of 4; all scores of a block's queries in shared memory.
"""

from __future__ import annotations

from sparsetvm.schedules.cuda.launch import Launch
from sparsetvm.schedules.operators import Attention

from sparsetvm.core.target import Target
from sparsetvm.errors import SparseTvmError

__all__ = ["Attention", "attention_kernel", "attention_supported"]

_CHUNK, _THREADS = 128, 256
_MOST_FEATURES = 128  # of a head: a thread has an accumulator for every 16th of them and 4 queries


def attention_supported(attention: Attention, target: Target) -> bool:
    """True when `attention_kernel` can implement it."""
    a = attention
    aligned = a.batch == 1 or a.seq % 4 == 0
    return a.mask_fits and aligned and a.head_dim <= _MOST_FEATURES and _shared(a, target) <= target.shared


def attention_kernel(attention: Attention, target: Target, symbol: str) -> Launch:
    """Launch (Q, K, V, [mask], Y). Raises SparseTvmError when `attention_supported` does not hold."""
    a = attention
    if not attention_supported(a, target):
        raise SparseTvmError(
            f"no fused kernel for {a} on {target.isa}", hint="compile it as two products and a softmax"
        )
    readable, queries_of_block = -(-a.seq // 4) * 4, _queries(a, target)
    images, heads, queries, keys = a.mask_shape or (1, 1, 1, 1)
    mask_steps = (
        heads * queries * keys if images > 1 else 0,
        queries * keys if heads > 1 else 0,
        keys if queries > 1 else 0,
    )
    defines = (
        *(("SP_DIM", a.head_dim), ("SP_SCALE", a.scale), ("SP_MASK", int(a.mask_shape is not None))),
        *(("SP_QUERIES", queries_of_block), ("SP_SLICES", _slices(a, target)), ("SP_BUFFERS", _buffers(a))),
    )
    tokens = -(-a.batch * a.seq // 4) * 4
    grid = (-(-a.seq // queries_of_block), a.heads, a.batch)
    scalars = (a.seq, readable, tokens, *mask_steps)
    return Launch(
        "attention.cu", "attention", defines, grid, _THREADS, _shared(a, target), scalars=scalars, overlaps=True
    )


def _queries(attention: Attention, target: Target) -> int:
    """Queries of a block: 8 where one chunk has all keys and 16 would leave multiprocessors without a block.

    Every block reads all of K and V, so that more queries are better where blocks abound.
    """
    a = attention
    return 8 if a.seq <= _CHUNK and a.batch * a.heads * -(-a.seq // 16) < target.sms else 16


def _slices(attention: Attention, target: Target) -> int:
    """Shares of the features in the scores: one chunk of keys is work for 1 or 2 warps, a block has 8."""
    chunks, eights = -(-attention.seq // _CHUNK), _queries(attention, target) // 8
    return 8 // eights if chunks == 1 else 2 if chunks == 2 else 1


def _buffers(attention: Attention) -> int:
    return 1 if attention.seq <= _CHUNK else 2


def _shared(attention: Attention, target: Target) -> int:
    """Bytes of shared memory: queries, sums, chunks of V; scores, later shares of the output."""
    a, queries = attention, _queries(attention, target)
    keys = -(-a.seq // _CHUNK) * _CHUNK + 4
    chunks = _buffers(a) * -(-a.head_dim // 16) * 16 * (_CHUNK + 4)
    scores = max(_slices(a, target) * queries * keys, 64 * a.head_dim)
    return 4 * (a.head_dim * queries + queries + chunks + scores)
