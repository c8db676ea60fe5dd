"""Fuse the layer normalisation over the last axis that exporters decompose.

Before:  d = Sub(x, ReduceMean(x)); v = ReduceMean(Pow(d, 2)); n = Div(d, Sqrt(Add(v, epsilon)))
         y = Add(Mul(n, gamma), beta)          Mul(d, d) for the square; gamma or beta may be missing
After:   y = LayerNormalization(x, gamma, beta) {axis=-1, epsilon}
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsetvm.core.graph import Graph, Node
from sparsetvm.rewrite.canonical.edit import Uses, integers, rewrite_each, rewrite_node, scalar, split_constant


def fuse_layer_norm(graph: Graph) -> bool:
    """Fuse every layer normalisation; returns whether anything changed."""
    return rewrite_each(graph, ("Div", "Mul"), _fuse)


@dataclass
class _Normalised:
    """(source - mean) / sqrt(variance + epsilon), and the nodes that compute it."""

    source: str
    epsilon: float
    nodes: list[Node]


def _fuse(graph: Graph, root: Node) -> bool:
    uses = Uses(graph)
    found = _match(graph, uses, root)
    if found is None:
        return False
    features = graph.values[found.source].shape[-1]
    gamma, beta = np.ones(features, np.float32), np.zeros(features, np.float32)
    scaled = per_feature(graph, uses, root, "Mul", features)
    if scaled is not None:
        root, gamma = scaled
        found.nodes.append(root)
    shifted = per_feature(graph, uses, root, "Add", features)
    if shifted is not None:
        root, beta = shifted
    stem = root.outputs[0]
    inputs = [
        found.source,
        graph.add_constant(f"{stem}.gamma", gamma).name,
        graph.add_constant(f"{stem}.beta", beta).name,
    ]
    attrs = {"axis": -1, "epsilon": found.epsilon}
    rewrite_node(root, "LayerNormalization", inputs, attrs, replaces=found.nodes)
    return True


def per_feature(graph: Graph, uses: Uses, node: Node, op: str, features: int) -> tuple[Node, np.ndarray] | None:
    """The only reader of `node` when it multiplies or adds a constant per feature, and that constant."""
    user = uses.sole_user(node.outputs[0])
    parts = split_constant(graph, user) if user is not None and user.is_op(op) else None
    if user is None or parts is None:
        return None
    constant = parts[1]
    fits = constant.size == 1 or (constant.size == features and constant.shape[-1] == features)
    if not fits or graph.values[user.outputs[0]].shape != graph.values[node.outputs[0]].shape:
        return None
    return user, np.broadcast_to(constant.reshape(-1), (features,)).astype(np.float32)


def _match(graph: Graph, uses: Uses, node: Node) -> _Normalised | None:
    """Match Div(d, s), or Mul(d, Reciprocal(s)) in either order, with s the standard deviation of d."""
    if len(node.inputs) != 2:
        return None
    pairs = [node.inputs] if node.op == "Div" else [node.inputs, node.inputs[::-1]]
    for centred_name, deviation_name in pairs:
        centred = uses.producer(centred_name, "Sub")
        nodes = [node]
        if node.op == "Mul":
            inverse = uses.producer(deviation_name, "Reciprocal")
            nodes += [inverse] if inverse is not None else []
            deviation = uses.producer(inverse.inputs[0], "Sqrt") if inverse is not None else None
        else:
            deviation = uses.producer(deviation_name, "Sqrt")
        if centred is None or deviation is None:
            continue
        found = _match_statistics(graph, uses, centred, deviation)
        if found is not None:
            found.nodes.extend(nodes)
            return found
    return None


def _match_statistics(graph: Graph, uses: Uses, centred: Node, deviation: Node) -> _Normalised | None:
    """centred = x - mean(x); deviation = sqrt(mean(centred^2) + epsilon)."""
    source = centred.inputs[0]
    mean = last_axis_mean(graph, uses, centred.inputs[1])
    added = uses.producer(deviation.inputs[0], "Add")
    parts = split_constant(graph, added) if added is not None else None
    if mean is None or mean.inputs[0] != source or added is None or parts is None or parts[1].size != 1:
        return None
    variance = last_axis_mean(graph, uses, parts[0])
    square = uses.producer(variance.inputs[0], "Pow", "Mul") if variance is not None else None
    if variance is None or square is None:
        return None
    base = squared(graph, square)
    if base is None or not _same_difference(uses, base, centred):
        return None
    nodes = [centred, mean, square, variance, added, deviation]
    return _Normalised(source, float(parts[1].reshape(-1)[0]), nodes)


def _same_difference(uses: Uses, name: str, centred: Node) -> bool:
    """Some exporters compute the difference twice."""
    node = uses.producer(name, "Sub")
    return node is not None and node.inputs == centred.inputs


def squared(graph: Graph, square: Node) -> str | None:
    """The value whose square a Pow or Mul computes, None when it computes something else."""
    base, exponent = square.inputs
    is_square = scalar(graph, exponent) == 2.0 if square.op == "Pow" else base == exponent
    return base if is_square else None


def last_axis_mean(graph: Graph, uses: Uses, name: str) -> Node | None:
    """The ReduceMean over the last axis that computes `name` and keeps the axis."""
    node = uses.producer(name, "ReduceMean")
    if node is None or not node.attrs.get("keepdims", 1):
        return None
    axes = integers(graph, node, "axes", 1)
    rank = len(graph.values[node.inputs[0]].shape)
    return node if axes is not None and [axis % rank for axis in axes] == [rank - 1] else None
