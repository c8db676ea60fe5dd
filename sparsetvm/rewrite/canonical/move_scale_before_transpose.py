"""Move a constant factor from behind a Transpose to before it, where the layer takes it into its weights.

Before:  t = Transpose(MatMul(x, W)) {perm=[0, 3, 1, 2]}; y = Mul(t, s), s (C, 1, 1)       (ConvNeXt's layer scale)
After:   m = Mul(MatMul(x, W), s), s (1, 1, 1, C); y = Transpose(m)
"""

from __future__ import annotations

import numpy as np

from sparsetvm.core.graph import Graph, Node
from sparsetvm.rewrite.canonical.edit import Uses, rewrite_each, split_constant
from sparsetvm.rewrite.canonical.products import PRODUCTS


def move_scale_before_transpose(graph: Graph) -> bool:
    """Move every such factor; returns whether anything changed."""
    return rewrite_each(graph, ("Mul",), _move)


def _move(graph: Graph, node: Node) -> bool:
    found = split_constant(graph, node)
    if found is None:
        return False
    moved, factor = found
    uses = Uses(graph)
    transpose = uses.producer(moved, "Transpose")
    shape = graph.values[moved].shape
    if transpose is None or uses.sole_user(moved) is not node or graph.values[node.outputs[0]].shape != shape:
        return False
    x = transpose.inputs[0]
    if not _behind_layer(graph, uses, x):
        return False
    perm = [int(axis) for axis in transpose.attrs.get("perm") or range(len(shape))[::-1]]
    whole = factor.reshape((1,) * (len(shape) - factor.ndim) + factor.shape)
    constant = graph.add_constant(f"{node.name}.factor", np.ascontiguousarray(whole.transpose(np.argsort(perm))))
    # The transposition and the factor change places; the names of values stay with what reads them.
    scaled = graph.add_value(f"{x}.scaled", graph.values[x].shape, graph.values[x].dtype)
    transpose.inputs, transpose.outputs = [scaled.name], list(node.outputs)
    node.inputs, node.outputs = [x, constant.name], [scaled.name]
    graph.nodes.remove(transpose)
    graph.nodes.insert(graph.nodes.index(node) + 1, transpose)
    return True


def _behind_layer(graph: Graph, uses: Uses, name: str) -> bool:
    """True when a product computes the value for one reader, with or without a constant added."""
    add = uses.producer(name, "Add")
    parts = split_constant(graph, add) if add is not None else None
    product = name if parts is None else parts[0]
    single = uses.sole_user(name) is not None and uses.sole_user(product) is not None
    return single and uses.producer(product, *PRODUCTS) is not None
