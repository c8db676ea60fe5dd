"""Fuse the normalisation by the root mean square of the last axis that exporters decompose (Zhang and Sennrich, 2019).

Before:  r = Sqrt(Add(ReduceMean(Pow(x, 2)), epsilon)); n = Div(x, r); y = Mul(n, gamma)
         Mul(x, x) for the square; Mul(x, Reciprocal(r)) or Mul(x, Div(1, r)) for the quotient; gamma may be missing
After:   y = RMSNormalization(x, gamma) {axis=-1, epsilon}
"""

from __future__ import annotations

import numpy as np

from sparsetvm.core.graph import Graph, Node
from sparsetvm.rewrite.canonical.edit import Uses, rewrite_each, rewrite_node, scalar, split_constant
from sparsetvm.rewrite.canonical.fuse_layer_norm import last_axis_mean, per_feature, squared


def fuse_rms_norm(graph: Graph) -> bool:
    """Fuse every such normalisation; returns whether anything changed."""
    return rewrite_each(graph, ("Div", "Mul"), _fuse)


def _fuse(graph: Graph, root: Node) -> bool:
    uses = Uses(graph)
    for source, root_name, inverse in _quotients(graph, uses, root):
        found = _match(graph, uses, source, root_name)
        if found is None or graph.values[source].dtype != "float32":
            continue
        epsilon, nodes = found
        nodes += [root, *inverse]
        features = graph.values[source].shape[-1]
        gamma = np.ones(features, np.float32)
        scaled = per_feature(graph, uses, root, "Mul", features)
        if scaled is not None:
            root, gamma = scaled
        scale = graph.add_constant(f"{root.outputs[0]}.gamma", gamma).name
        attrs = {"axis": -1, "epsilon": epsilon}
        rewrite_node(root, "RMSNormalization", [source, scale], attrs, replaces=nodes)
        return True
    return False


def _quotients(graph: Graph, uses: Uses, node: Node) -> list[tuple[str, str, list[Node]]]:
    """All (x, r, node of 1 / r) for which `node` computes x / r."""
    if node.op == "Div":
        return [(node.inputs[0], node.inputs[1], [])]
    found = []
    for source, factor in (node.inputs, node.inputs[::-1]):
        inverse = uses.producer(factor, "Reciprocal", "Div")
        if inverse is not None and (inverse.op == "Reciprocal" or scalar(graph, inverse.inputs[0]) == 1.0):
            found.append((source, inverse.inputs[-1], [inverse]))
    return found


def _match(graph: Graph, uses: Uses, source: str, name: str) -> tuple[float, list[Node]] | None:
    """Epsilon and the nodes, when `name` is sqrt(mean(source^2) + epsilon)."""
    deviation = uses.producer(name, "Sqrt")
    added = uses.producer(deviation.inputs[0], "Add") if deviation is not None else None
    parts = split_constant(graph, added) if added is not None else None
    if deviation is None or added is None or parts is None or parts[1].size != 1:
        return None
    mean = last_axis_mean(graph, uses, parts[0])
    square = uses.producer(mean.inputs[0], "Pow", "Mul") if mean is not None else None
    if mean is None or square is None or squared(graph, square) != source:
        return None
    return float(parts[1].reshape(-1)[0]), [square, mean, added, deviation]
