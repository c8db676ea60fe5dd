"""Fold the addition of a constant per output channel into the bias of the Conv or Gemm before it.

Before:  c = Conv(x, W, b); y = Add(c, s)       or Sub(c, s)
After:   y = Conv(x, W, b + s)
"""

from __future__ import annotations

from sparsetvm.core.graph import Graph, Node
from sparsetvm.rewrite.canonical.edit import Uses, drop_into, rewrite_each, split_constant
from sparsetvm.rewrite.canonical.products import add_to_bias, per_feature


def fold_add_into_bias(graph: Graph) -> bool:
    """Fold every such addition; returns whether anything changed."""
    return rewrite_each(graph, ("Add", "Sub"), _fold)


def _fold(graph: Graph, node: Node) -> bool:
    found = split_constant(graph, node)
    if found is None:
        return False
    computed, constant = found
    uses = Uses(graph)
    layer = uses.producer(computed, "Conv", "Gemm")
    if layer is None or uses.sole_user(computed) is not node or (node.op == "Sub" and node.inputs[0] != computed):
        return False
    addend = per_feature(graph, layer, constant)
    if addend is None or not add_to_bias(graph, layer, -addend if node.op == "Sub" else addend):
        return False
    drop_into(graph, layer, node)
    return True
