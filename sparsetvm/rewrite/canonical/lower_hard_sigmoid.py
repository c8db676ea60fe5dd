"""Write a hard sigmoid as a line and a clamp: the line folds into the layer before it, the clamp is its activation.

Before:  HardSigmoid(x) {alpha, beta}
After:   sparsetvm.Clip(Add(Mul(x, alpha), beta)) {low=0, high=1}
"""

from __future__ import annotations

import numpy as np

from sparsetvm.core.graph import SPARSETVM_DOMAIN, Graph, Node
from sparsetvm.rewrite.canonical.edit import merged_origin, rewrite_node

_ALPHA, _BETA = 0.2, 0.5  # ONNX's defaults


def lower_hard_sigmoid(graph: Graph) -> bool:
    """Rewrite every hard sigmoid of float32; returns whether anything changed."""
    nodes: list[Node] = []
    changed = False
    for node in graph.nodes:
        if node.is_op("HardSigmoid") and graph.values[node.outputs[0]].dtype == "float32":
            nodes.extend(_line(graph, node))
            changed = True
        nodes.append(node)
    graph.nodes = nodes
    return changed


def _line(graph: Graph, node: Node) -> list[Node]:
    """Mul and Add for a hard sigmoid, which becomes the clamp after them."""
    shape, name = graph.values[node.inputs[0]].shape, node.inputs[0]
    line = []
    for op, attribute, default in (("Mul", "alpha", _ALPHA), ("Add", "beta", _BETA)):
        factor = np.array(node.attrs.get(attribute, default), np.float32)
        constant = graph.add_constant(f"{node.name}.{attribute}", factor)
        out = graph.add_value(f"{node.outputs[0]}.{op.lower()}", shape, "float32")
        line.append(
            Node(f"{node.name}.{op.lower()}", op, [name, constant.name], [out.name], origin=merged_origin([node]))
        )
        name = out.name
    rewrite_node(node, "Clip", [name], {"low": 0.0, "high": 1.0}, domain=SPARSETVM_DOMAIN)
    return line
