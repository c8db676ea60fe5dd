"""Write an inference BatchNormalization as a product and a sum; `fold_scale_into_weights` and `fold_add_into_bias`
then take both into the layer before it.

Before:  y = BatchNormalization(x, scale, bias, mean, var) {epsilon}
After:   s = Mul(x, scale / sqrt(var + epsilon)); y = Add(s, bias - mean * scale / sqrt(var + epsilon))
"""

from __future__ import annotations

import numpy as np

from sparsetvm.core.graph import Graph, Node
from sparsetvm.errors import ModelError
from sparsetvm.frontend.names import display_name


def fold_batch_norm(graph: Graph) -> bool:
    """Replace every BatchNormalization with constant statistics; returns whether anything changed."""
    nodes: list[Node] = []
    for node in graph.nodes:
        nodes.extend(_as_mul_add(graph, node) or [node])
    changed = len(nodes) != len(graph.nodes)
    graph.nodes = nodes
    if changed:
        graph.prune_dead()
    return changed


def _as_mul_add(graph: Graph, node: Node) -> list[Node] | None:
    if not node.is_op("BatchNormalization") or node.attrs.get("training_mode", 0) or any(node.outputs[1:]):
        return None
    statistics = [graph.constant(name) for name in node.inputs[1:5]]
    if any(data is None for data in statistics):
        return None
    x = graph.values[node.inputs[0]]
    channels = x.shape[1] if len(x.shape) > 1 else 1
    if any(data is not None and data.shape != (channels,) for data in statistics):
        raise ModelError(
            f"its scale, bias, mean and variance are not vectors of {channels} numbers, one for each channel",
            layer=display_name(node.name),
            hint="check the model with onnx.checker.check_model(path, full_check=True)",
        )
    gamma, beta, mean, variance = (np.asarray(data, np.float64) for data in statistics)
    factor = gamma / np.sqrt(variance + float(node.attrs.get("epsilon", 1e-5)))
    shift = beta - mean * factor
    # The channel is axis 1: the constants need a one for each axis after it.
    shape = (factor.size, *[1] * (len(x.shape) - 2)) if len(x.shape) > 1 else (1,)
    scale = graph.add_constant(f"{node.name}.scale", factor.reshape(shape).astype(np.float32))
    offset = graph.add_constant(f"{node.name}.shift", shift.reshape(shape).astype(np.float32))
    scaled = graph.add_value(f"{node.name}.scaled", x.shape, x.dtype)
    origin = node.origin or (node.name,)
    return [
        Node(f"{node.name}.scale", "Mul", [x.name, scale.name], [scaled.name], origin=origin),
        Node(node.name, "Add", [scaled.name, offset.name], node.outputs[:1], origin=origin),
    ]
