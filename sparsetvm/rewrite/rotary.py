"""Find rotary embeddings (Su et al., 2021) of the queries and keys of an attention, as Llama's are exported.

Before:  x (B, heads, S, d), from (B, S, H); y = Add(Mul(x, cos), Mul(Concat(Neg(x[d/2:]), x[:d/2]), sin)), cos and sin
         constants for each token and feature
After:   y = rotary(x) {cosines, sines} on (B, S, H)                                            (fuse_attention.py)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsetvm.core.graph import Graph, Node
from sparsetvm.rewrite.canonical.edit import Uses, split_constant
from sparsetvm.rewrite.moved_elements import Moved, moved_from


@dataclass(frozen=True)
class Turn:
    """cosines, sines: (tokens, features of a head)."""

    cosines: np.ndarray
    sines: np.ndarray


def turned(graph: Graph, uses: Uses, name: str) -> tuple[Moved, Turn] | None:
    """What a value (B, heads, S, d) was before it was turned, and how; None when it is no rotary embedding."""
    add, shape = uses.producer(name, "Add"), graph.values[name].shape
    parts = [_factor(graph, uses.producer(term, "Mul"), shape) for term in add.inputs] if add is not None else []
    for straight, across in (parts, parts[::-1]) if len(parts) == 2 else ():
        if straight is None or across is None:
            continue
        source = _source_of_both(graph, uses, straight[0], across[0])
        if source is not None:
            return source, Turn(straight[1], across[1])
    return None


def _factor(graph: Graph, node: Node | None, shape: tuple[int, ...]) -> tuple[str, np.ndarray] | None:
    """(x, factors (S, d)) of a product with a constant that all images and heads share."""
    found = split_constant(graph, node) if node is not None else None
    if found is None or len(shape) != 4 or found[1].ndim > 4 or graph.values[found[0]].shape != shape:
        return None
    leading = (1,) * (4 - found[1].ndim) + found[1].shape
    if leading[:2] != (1, 1) or found[1].dtype != np.float32:
        return None
    return found[0], np.ascontiguousarray(np.broadcast_to(found[1].reshape(leading[2:]), shape[2:]))


def _source_of_both(graph: Graph, uses: Uses, x: str, across: str) -> Moved | None:
    """The source of x, when `across` has minus its second half first, then its first half."""
    concat = uses.producer(across, "Concat")
    axis = int(concat.attrs["axis"]) if concat is not None else 0
    if concat is None or len(concat.inputs) != 2 or axis not in (-1, 3):
        return None
    negative = uses.producer(concat.inputs[0], "Neg")
    if negative is None:
        return None
    names = (x, negative.inputs[0], concat.inputs[1])
    whole, second, first = (moved_from(graph, uses, name) for name in names)
    if whole is None or second is None or first is None:
        return None
    half = whole.elements.shape[-1] // 2
    same = (
        whole.source == second.source == first.source
        and whole.factor == second.factor == first.factor
        and np.array_equal(second.elements, whole.elements[..., half:])
        and np.array_equal(first.elements, whole.elements[..., :half])
    )
    return whole if same and 2 * half == whole.elements.shape[-1] else None
