"""Move a positive factor from behind a clamp to before it, where the layer takes it into its weights.

Before:  c = Add(Gemm(x, W), 3); d = sparsetvm.Clip(c) {0, 6}; y = Div(d, 6)          (a hard sigmoid)
After:   c = Div(Add(Gemm(x, W), 3), 6); y = sparsetvm.Clip(c) {0, 1}
"""

from __future__ import annotations

import math

import numpy as np

from sparsetvm.core.graph import SPARSETVM_DOMAIN, Graph, Node
from sparsetvm.rewrite.canonical.edit import Uses, rewrite_each, split_constant
from sparsetvm.rewrite.canonical.products import PRODUCTS

_LARGEST = float(np.finfo(np.float32).max)  # stands for no bound
_LINEAR = ("Add", "Sub", "Mul", "Div")


def move_scale_before_clip(graph: Graph) -> bool:
    """Move every such factor; returns whether anything changed."""
    return rewrite_each(graph, ("Mul", "Div"), _move)


def _move(graph: Graph, node: Node) -> bool:
    found = split_constant(graph, node)
    if found is None or found[1].size != 1 or (node.op == "Div" and node.inputs[0] != found[0]):
        return False
    clipped, factor = found[0], float(found[1].reshape(-1)[0])
    factor = 1.0 / factor if node.op == "Div" and factor else factor
    uses = Uses(graph)
    clip = uses.producer(clipped, "Clip", domain=SPARSETVM_DOMAIN)
    same_shape = graph.values[clipped].shape == graph.values[node.outputs[0]].shape
    if clip is None or not same_shape or not 0.0 < factor < math.inf or uses.sole_user(clipped) is not node:
        return False
    bounds = {name: _scaled(float(clip.attrs[name]), factor) for name in ("low", "high")}
    if max(map(abs, bounds.values())) > _LARGEST or not _behind_layer(graph, uses, clip):
        return False
    # The clamp and the factor change places; the names of values stay with what reads them.
    constant = node.inputs[1] if node.inputs[0] == clipped else node.inputs[0]
    node.inputs, clip.inputs = [clip.inputs[0], constant], [clipped]
    node.outputs, clip.outputs = [clipped], list(node.outputs)
    clip.attrs = {**clip.attrs, **bounds}
    graph.nodes.remove(clip)
    graph.nodes.insert(graph.nodes.index(node) + 1, clip)
    return True


def _scaled(bound: float, factor: float) -> float:
    return bound if abs(bound) >= _LARGEST else bound * factor


def _behind_layer(graph: Graph, uses: Uses, clip: Node) -> bool:
    """True when nothing but constants added and multiplied stands between a layer and the clamp."""
    name = clip.inputs[0]
    while uses.sole_user(name) is not None:
        node = uses.producer(name)
        if node is None or node.is_op(*PRODUCTS):
            return node is not None
        parts = split_constant(graph, node) if node.is_op(*_LINEAR) else None
        if parts is None:
            return False
        name = parts[0]
    return False
