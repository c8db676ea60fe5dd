"""Write an average over all pixels as GlobalAveragePool.

Before:  ReduceMean(x) {axes=[2, 3], keepdims=0}                 AveragePool(x) {kernel_shape = size of the image}
After:   Reshape(GlobalAveragePool(x), (batch, channels))        GlobalAveragePool(x)
"""

from __future__ import annotations

import numpy as np

from sparsetvm.core.graph import Graph, Node
from sparsetvm.rewrite.canonical.edit import integers, merged_origin, rewrite_node


def use_global_average_pool(graph: Graph) -> bool:
    """Rewrite every such average of 4-D tensors; returns whether anything changed."""
    nodes: list[Node] = []
    changed = False
    for node in graph.nodes:
        made = _rewrite(graph, node)
        nodes.extend(made or [node])
        changed |= made is not None
    graph.nodes = nodes
    if changed:
        graph.prune_dead()
    return changed


def _rewrite(graph: Graph, node: Node) -> list[Node] | None:
    if not node.is_op("ReduceMean", "AveragePool"):
        return None
    x = graph.values[node.inputs[0]]
    if len(x.shape) != 4 or x.dtype != "float32":
        return None
    if node.op == "AveragePool":
        whole = tuple(node.attrs["kernel_shape"]) == x.shape[2:] and not any(node.attrs.get("pads") or [])
        dilated = any(d != 1 for d in node.attrs.get("dilations") or [])
        # With ceil_mode or a stride there may be more windows than one: the output shape tells.
        if not whole or dilated or graph.values[node.outputs[0]].shape[2:] != (1, 1) or "auto_pad" in node.attrs:
            return None
        rewrite_node(node, "GlobalAveragePool", [x.name], {})
        return [node]
    axes = integers(graph, node, "axes", 1)
    if axes is None or sorted(axis % 4 for axis in axes) != [2, 3]:
        return None
    if node.attrs.get("keepdims", 1):
        rewrite_node(node, "GlobalAveragePool", [x.name], {})
        return [node]
    shape = graph.add_constant(f"{node.name}.shape", np.array(x.shape[:2], np.int64))
    pooled = graph.add_value(f"{node.name}.pooled", (*x.shape[:2], 1, 1), x.dtype)
    pool = Node(f"{node.name}.pool", "GlobalAveragePool", [x.name], [pooled.name], origin=merged_origin([node]))
    rewrite_node(node, "Reshape", [pooled.name, shape.name], {})
    return [pool, node]
