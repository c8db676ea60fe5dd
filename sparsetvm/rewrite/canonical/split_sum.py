"""Write Sum as Adds.

Before:  y = Sum(a, b, c)        After:  s = Add(a, b); y = Add(s, c)
"""

from __future__ import annotations

import numpy as np

from sparsetvm.core.graph import Graph, Node


def split_sum(graph: Graph) -> bool:
    """Replace every Sum of two or more tensors; returns whether anything changed."""
    nodes: list[Node] = []
    changed = False
    for node in graph.nodes:
        if not node.is_op("Sum") or len(node.inputs) < 2:
            nodes.append(node)
            continue
        total = graph.values[node.inputs[0]]
        origin = node.origin or (node.name,)
        for index, name in enumerate(node.inputs[1:], 1):
            shape = np.broadcast_shapes(total.shape, graph.values[name].shape)
            last = index == len(node.inputs) - 1
            result = (
                graph.values[node.outputs[0]] if last else graph.add_value(f"{node.name}.{index}", shape, total.dtype)
            )
            layer = node.name if last else f"{node.name}.{index}"
            nodes.append(Node(layer, "Add", [total.name, name], [result.name], origin=origin))
            total = result
        changed = True
    graph.nodes = nodes
    return changed
