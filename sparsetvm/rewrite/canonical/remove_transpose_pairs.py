"""Compose adjacent Transposes and remove those that change nothing.

Before:  a = Transpose(x) {perm=[0, 2, 3, 1]}; b = Transpose(a) {perm=[0, 3, 1, 2]}; y = Conv(b, W)
After:   y = Conv(x, W)
"""

from __future__ import annotations

from sparsetvm.core.graph import Graph, Node
from sparsetvm.rewrite.canonical.edit import Uses, bypass, rewrite_node


def remove_transpose_pairs(graph: Graph) -> bool:
    """Compose and remove Transposes; returns whether anything changed."""
    changed = False
    uses = Uses(graph)
    for node in graph.nodes:
        first = uses.producer(node.inputs[0], "Transpose") if node.is_op("Transpose") else None
        if first is not None:
            inner, outer = _perm(graph, first), _perm(graph, node)
            perm = [inner[axis] for axis in outer]
            rewrite_node(node, "Transpose", first.inputs, {"perm": perm}, replaces=[first])
            changed = True
    for node in [node for node in graph.nodes if node.is_op("Transpose")]:
        perm = _perm(graph, node)
        changed |= perm == sorted(perm) and bypass(graph, node)
    if changed:
        graph.prune_dead()
    return changed


def _perm(graph: Graph, node: Node) -> list[int]:
    rank = len(graph.values[node.inputs[0]].shape)
    return [int(axis) for axis in node.attrs.get("perm") or range(rank)[::-1]]
