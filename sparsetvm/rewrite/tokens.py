"""How the tokens of a product are laid out."""

from __future__ import annotations

import math

from sparsetvm.core.graph import Graph, Node
from sparsetvm.core.target import Target
from sparsetvm.core.workload import FEW_TOKENS, FEW_TOKENS_CUDA


def tokens_of(graph: Graph, node: Node) -> int:
    """Tokens that a product reads: all but the last dimension of its X."""
    return math.prod(graph.values[node.inputs[0]].shape[:-1])


def few_tokens(target: Target) -> int:
    """Products of up to this many tokens are in plain layouts, for kernels whose lanes are output rows."""
    if target.kind == "cuda":
        return FEW_TOKENS_CUDA
    return FEW_TOKENS if target.isa == "avx512" else 1


def token_lanes(rows: int, target: Target) -> int:
    """Tokens of a tile. A vector: the smallest of 4, 8, 16 that holds them all, at most the target's.

    On a GPU one tile holds all tokens, so that each feature is a row: blocks cut it into tiles as they like.
    """
    if target.kind == "cuda":
        return -(-rows // target.lanes) * target.lanes
    return next((lanes for lanes in (4, 8, 16) if rows <= lanes <= target.lanes), target.lanes)
