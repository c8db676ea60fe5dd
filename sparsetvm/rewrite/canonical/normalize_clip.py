"""Bring every way to write a clamp with constant bounds to one operator.

Before:  Clip(x, low, high), Clip(x) {min, max}, Min(Max(x, low), high), Min(Relu(x), 6), Relu(Clip(x))
After:   sparsetvm.Clip(x) {"low": float, "high": float}, or Relu(x) when the bounds are 0 and none

An absent bound becomes the largest finite float32, so that a clip can be written to a tuning log as plain numbers.
"""

from __future__ import annotations

import numpy as np

from sparsetvm.core.graph import SPARSETVM_DOMAIN, Graph, Node
from sparsetvm.rewrite.canonical.edit import Uses, rewrite_node, scalar, split_constant

_LARGEST = float(np.finfo(np.float32).max)


def normalize_clip(graph: Graph) -> bool:
    """Normalise clamps of float32 and merge adjacent ones; returns whether anything changed."""
    changed = False
    for node in graph.nodes:
        bounds = _bounds(graph, node)
        if bounds is not None and graph.values[node.outputs[0]].dtype == "float32":
            changed |= _write(node, bounds[0], bounds[1], bounds[2])
    while _merge_one(graph):
        changed = True
    if changed:
        graph.prune_dead()
    return changed


def _bounds(graph: Graph, node: Node) -> tuple[str, float, float] | None:
    """(clamped value, low, high) of a Clip, Min or Max with constant bounds."""
    if node.is_op("Clip"):
        low: float | None = float(node.attrs.get("min", -_LARGEST))
        high: float | None = float(node.attrs.get("max", _LARGEST))
        if len(node.inputs) > 1 and node.inputs[1]:
            low = scalar(graph, node.inputs[1])
        if len(node.inputs) > 2 and node.inputs[2]:
            high = scalar(graph, node.inputs[2])
        return None if low is None or high is None else (node.inputs[0], low, high)
    parts = split_constant(graph, node) if node.is_op("Min", "Max") else None
    if parts is None or parts[1].size != 1:
        return None
    if graph.values[parts[0]].shape != graph.values[node.outputs[0]].shape:
        return None
    bound = float(parts[1].reshape(-1)[0])
    return (parts[0], bound, _LARGEST) if node.op == "Max" else (parts[0], -_LARGEST, bound)


def _write(node: Node, x: str, low: float, high: float, replaces: tuple[Node, ...] = ()) -> bool:
    low, high = max(low, -_LARGEST), min(high, _LARGEST)
    if not low <= high:
        return False
    if low == 0.0 and high >= _LARGEST:
        rewrite_node(node, "Relu", [x], {}, replaces=replaces)
    else:
        rewrite_node(node, "Clip", [x], {"low": low, "high": high}, domain=SPARSETVM_DOMAIN, replaces=replaces)
    return True


def _range(node: Node) -> tuple[float, float] | None:
    if node.is_op("Relu"):
        return 0.0, _LARGEST
    return (node.attrs["low"], node.attrs["high"]) if node.is_op("Clip", domain=SPARSETVM_DOMAIN) else None


def _merge_one(graph: Graph) -> bool:
    """Merge one clamp into the clamp before it, which nobody else reads."""
    uses = Uses(graph)
    for node in graph.nodes:
        outer = _range(node)
        inner_node = uses.producer(node.inputs[0]) if outer is not None else None
        inner = _range(inner_node) if inner_node is not None else None
        if outer is None or inner is None or inner_node is None or uses.sole_user(node.inputs[0]) is not node:
            continue
        low, high = (min(max(bound, outer[0]), outer[1]) for bound in inner)
        if _write(node, inner_node.inputs[0], low, high, (inner_node,)):
            graph.nodes = [other for other in graph.nodes if other is not inner_node]
            return True
    return False
