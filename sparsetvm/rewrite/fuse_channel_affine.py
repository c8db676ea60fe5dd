"""Fuse what is left of a normalisation that no layer took in: a factor and an addend for each channel, an activation.

Before:  m = Mul(x, a); s = Add(m, b); y = Relu(s)        (a and b constant: one number, or one for each channel)
After:   y = affine_channels(x) {scale, shift, epilogue}  = activation(a * x + b)

Of images only. DenseNet, whose normalisations come before the convolutions, has one for each layer.
"""

from __future__ import annotations

import math

import numpy as np

from sparsetvm.core.graph import SPARSETVM_DOMAIN, Graph, Node
from sparsetvm.core.workload import Epilogue
from sparsetvm.rewrite.canonical.edit import Uses, drop_into, rewrite_node, split_constant
from sparsetvm.rewrite.fuse_epilogues import activation_of


def fuse_channel_affine(graph: Graph) -> bool:
    """Fuse every such chain; returns whether anything changed."""
    changed = False
    for node in list(graph.nodes):
        changed |= _start(graph, node)
    if changed:
        graph.prune_dead()
    return changed


def _start(graph: Graph, node: Node) -> bool:
    """Make the first node of a chain one that stands for the whole chain."""
    first = _constant(graph, node)
    if first is None or all(node is not other for other in graph.nodes):  # part of a chain already
        return False
    x, scale, shift = first
    rewrite_node(node, "affine_channels", [x], {}, domain=SPARSETVM_DOMAIN)
    while (following := Uses(graph).sole_user(node.outputs[0])) is not None:
        more = _constant(graph, following)
        if more is None:
            break
        scale, shift = more[1] * scale, more[1] * shift + more[2]
        drop_into(graph, node, following)
    epilogue = Epilogue()
    activation = activation_of(following) if following is not None else None
    if following is not None and activation is not None:
        epilogue = Epilogue(**activation)
        drop_into(graph, node, following)
    node.attrs = {"scale": scale.astype(np.float32), "shift": shift.astype(np.float32), "epilogue": epilogue}
    return True


def _constant(graph: Graph, node: Node) -> tuple[str, np.ndarray, np.ndarray] | None:
    """(x, scale, shift), float64 for each channel, where `node` is a product or sum of an image x and a constant."""
    parts = split_constant(graph, node) if node.is_op("Mul", "Add") else None
    if parts is None:
        return None
    x, constant = parts
    image, out = graph.values[x], graph.values[node.outputs[0]]
    if len(image.shape) != 4 or image.shape != out.shape or {image.dtype, constant.dtype.name} != {"float32"}:
        return None
    channels = image.shape[1]
    per_channel = constant.ndim >= 3 and constant.shape[-3] == channels and math.prod(constant.shape) == channels
    if constant.size != 1 and not per_channel:
        return None
    values = np.broadcast_to(constant.reshape(-1).astype(np.float64), channels)
    return (x, values, np.zeros(channels)) if node.op == "Mul" else (x, np.ones(channels), values)
