"""Make Reshapes of Transposes that move axes of one element only: no element changes its place.

Before:  y = Transpose(x) {perm=[1, 0, 2]} of (1, 197, 768)        After:  y = Reshape(x, (197, 1, 768))
"""

from __future__ import annotations

import numpy as np

from sparsetvm.core.graph import Graph, Node
from sparsetvm.rewrite.canonical.edit import rewrite_each, rewrite_node


def drop_trivial_transposes(graph: Graph) -> bool:
    """Rewrite every such Transpose; returns whether anything changed."""
    return rewrite_each(graph, ("Transpose",), _rewrite)


def _rewrite(graph: Graph, node: Node) -> bool:
    before, after = (graph.values[name].shape for name in (node.inputs[0], node.outputs[0]))
    perm = [int(axis) for axis in node.attrs.get("perm") or range(len(before))[::-1]]
    moved = [axis for axis in perm if before[axis] != 1]
    if moved != sorted(moved):
        return False
    shape = graph.add_constant(f"{node.name}.shape", np.array(after, np.int64))
    rewrite_node(node, "Reshape", [node.inputs[0], shape.name], {})
    return True
