"""Make one Reshape of a chain of operators that only change the shape, and remove those that change nothing.

Before:  a = Flatten(x); b = Unsqueeze(a); y = Reshape(b, shape)        After:  y = Reshape(x, shape)
"""

from __future__ import annotations

import numpy as np

from sparsetvm.core.graph import Graph
from sparsetvm.rewrite.canonical.edit import Uses, bypass, rewrite_node

RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


def merge_reshapes(graph: Graph) -> bool:
    """Make one Reshape of a chain of Reshape, Flatten, Squeeze and Unsqueeze; returns whether anything changed."""
    changed = False
    uses = Uses(graph)
    for node in graph.nodes:
        first = uses.producer(node.inputs[0], *RESHAPES) if node.is_op(*RESHAPES) else None
        if first is not None:
            shape = graph.add_constant(f"{node.name}.shape", np.array(graph.values[node.outputs[0]].shape, np.int64))
            rewrite_node(node, "Reshape", [first.inputs[0], shape.name], {}, replaces=[first])
            changed = True
    for node in [node for node in graph.nodes if node.is_op(*RESHAPES)]:
        same = graph.values[node.inputs[0]].shape == graph.values[node.outputs[0]].shape
        changed |= same and bypass(graph, node)
    if changed:
        graph.prune_dead()
    return changed
