"""Fold a constant factor, one number or one per output feature, into the constant weight before it.

Before:  m = MatMul(x, W); y = Mul(m, s)               or Div(m, s), Conv, Gemm
After:   y = MatMul(x, W * s)
Before:  m = MatMul(x, W); a = Add(m, b); y = Mul(a, s)
After:   m = MatMul(x, W * s); y = Add(m, b * s)

Zeros of the weight stay zeros.
"""

from __future__ import annotations

import numpy as np

from sparsetvm.core.graph import Graph, Node
from sparsetvm.rewrite.canonical.edit import Uses, drop_into, rewrite_each, split_constant
from sparsetvm.rewrite.canonical.products import PRODUCTS, per_feature, scale_features


def fold_scale_into_weights(graph: Graph) -> bool:
    """Fold every such factor; returns whether anything changed."""
    return rewrite_each(graph, ("Mul", "Div"), _fold)


def _fold(graph: Graph, node: Node) -> bool:
    found = split_constant(graph, node)
    if found is None:
        return False
    computed, constant = found
    if constant.dtype != np.float32 or (node.op == "Div" and node.inputs[0] != computed):
        return False
    if not np.all(np.isfinite(constant)) or (node.op == "Div" and not np.all(constant)):
        return False
    uses = Uses(graph)
    if uses.sole_user(computed) is not node:
        return False
    layer = uses.producer(computed, *PRODUCTS)
    if layer is not None:
        factor = _factor(graph, layer, node, constant)
        if factor is None or not scale_features(graph, layer, factor):
            return False
        drop_into(graph, layer, node)
        return True
    return _fold_through_add(graph, uses, node, computed, constant)


def _factor(graph: Graph, layer: Node, node: Node, constant: np.ndarray) -> np.ndarray | None:
    factor = per_feature(graph, layer, constant)
    return None if factor is None else (1.0 / factor if node.op == "Div" else factor)


def _fold_through_add(graph: Graph, uses: Uses, node: Node, computed: str, constant: np.ndarray) -> bool:
    add = uses.producer(computed, "Add")
    parts = split_constant(graph, add) if add is not None else None
    if add is None or parts is None:
        return False
    product, addend = parts
    layer = uses.producer(product, *PRODUCTS)
    if layer is None or uses.sole_user(product) is not add:
        return False
    if graph.values[product].shape != graph.values[computed].shape:
        return False
    factor = _factor(graph, layer, node, constant)
    scaled = addend / constant if node.op == "Div" else addend * constant
    if factor is None or scaled.ndim > len(graph.values[product].shape) or not scale_features(graph, layer, factor):
        return False
    add.inputs = [product, graph.add_constant(f"{node.name}.bias", scaled.astype(np.float32)).name]
    drop_into(graph, add, node)
    return True
