"""Fuse the ways in which exporters write k-winners: the k largest values of each row stay, all others become zero.

Before:  values, at = TopK(x, k); y = ScatterElements(zeros, at, values)
         values, at = TopK(x, k); y = Mul(x, ScatterElements(zeros, at, ones))
         values, _ = TopK(x, k); y = Mul(x, Cast(GreaterOrEqual(x, kth(values)))), or Where(..., x, zeros)
After:   y = k_winners(x) {k, ties}

kth is the last of the values (Slice, Gather) or their minimum (ReduceMin). The rows are along the last axis. ties:
which of several equal k-th values stay, "all", or "first": the lowest index first until there are k, as in ONNX's TopK.
The activation is that of Ahmad and Scheinkman, "How Can We Be So Dense?" (2019).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsetvm.core.graph import SPARSETVM_DOMAIN, Graph, Node
from sparsetvm.rewrite.canonical.edit import Uses, integers, rewrite_node

_SAME_VALUES = ("Reshape", "Unsqueeze", "Squeeze", "Identity")


@dataclass(frozen=True)
class _TopK:
    node: Node
    x: str
    k: int


def fuse_k_winners(graph: Graph) -> bool:
    """Fuse all that there are; returns whether anything changed."""
    uses = Uses(graph)
    changed = False
    for node in graph.nodes:
        changed |= _scattered(graph, uses, node) or _masked(graph, uses, node)
    if changed:
        graph.prune_dead()
    return changed


def _scattered(graph: Graph, uses: Uses, node: Node) -> bool:
    top = _scatter_of(graph, uses, node)
    if top is None or node.inputs[2] != top.node.outputs[0]:
        return False
    return _write(node, top, "first", node)


def _masked(graph: Graph, uses: Uses, node: Node) -> bool:
    """x * mask or Where(mask, x, 0)."""
    if node.is_op("Where"):
        pairs = [(node.inputs[0], node.inputs[1])] if _is_constant(graph, node.inputs[2], 0.0) else []
    elif node.is_op("Mul"):
        pairs = [(node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])]
    else:
        return False
    if graph.values[node.outputs[0]].dtype != "float32":
        return False
    for mask, x in pairs:
        scatter = uses.producer(mask, "ScatterElements")
        top = _scatter_of(graph, uses, scatter) if scatter else None
        if top and scatter and top.x == x and _is_constant(graph, scatter.inputs[2], 1.0):
            return _write(node, top, "first", scatter)
        top = _threshold_of(graph, uses, mask, x)
        if top is not None:
            return _write(node, top, "all", node)
    return False


def _write(node: Node, top: _TopK, ties: str, replaced: Node) -> bool:
    rewrite_node(
        node, "k_winners", [top.x], {"k": top.k, "ties": ties}, domain=SPARSETVM_DOMAIN, replaces=[top.node, replaced]
    )
    return True


def _top_k(graph: Graph, node: Node | None) -> _TopK | None:
    """A TopK of the largest float32 values along the last axis."""
    if node is None or not node.is_op("TopK") or int(node.attrs.get("largest", 1)) != 1:
        return None
    value = graph.values[node.inputs[0]]
    last = len(value.shape) - 1
    counts = integers(graph, node, "k", 1)
    if value.dtype != "float32" or int(node.attrs.get("axis", -1)) not in (-1, last) or not counts:
        return None
    return _TopK(node, node.inputs[0], counts[0]) if 1 <= counts[0] <= value.shape[-1] else None


def _scatter_of(graph: Graph, uses: Uses, node: Node) -> _TopK | None:
    """The TopK whose indices a ScatterElements writes into zeros of the shape of its input."""
    if not node.is_op("ScatterElements") or node.attrs.get("reduction", "none") not in ("none", b"none"):
        return None
    top = _top_k(graph, uses.producer(node.inputs[1], "TopK"))
    if top is None or node.inputs[1] != top.node.outputs[1]:
        return None
    shape = graph.values[top.x].shape
    along = int(node.attrs.get("axis", 0)) in (-1, len(shape) - 1)
    zeros = _is_constant(graph, node.inputs[0], 0.0) and graph.values[node.inputs[0]].shape == shape
    return top if along and zeros else None


def _threshold_of(graph: Graph, uses: Uses, mask: str, x: str) -> _TopK | None:
    """The TopK of x in a mask x >= its k-th value."""
    cast = uses.producer(mask, "Cast")
    compare = uses.producer(cast.inputs[0] if cast else mask, "GreaterOrEqual", "LessOrEqual")
    if compare is None:
        return None
    left, right = compare.inputs if compare.op == "GreaterOrEqual" else compare.inputs[::-1]
    top = _kth(graph, uses, right) if left == x else None
    if top is None or top.x != x:
        return None
    shape, bound = graph.values[x].shape, graph.values[right].shape
    return top if bound == (*shape[:-1], 1) or (len(shape) == 1 and bound in ((), (1,))) else None


def _kth(graph: Graph, uses: Uses, name: str) -> _TopK | None:
    """The TopK whose smallest value `name` is."""
    node = uses.producer(name, *_SAME_VALUES, "Slice", "Gather", "ReduceMin", "TopK")
    while node is not None and node.is_op(*_SAME_VALUES):
        name = node.inputs[0]
        node = uses.producer(name, *_SAME_VALUES, "Slice", "Gather", "ReduceMin", "TopK")
    if node is None:
        return None
    if node.is_op("TopK"):
        top = _top_k(graph, node)
        return top if top is not None and top.k == 1 and name == node.outputs[0] else None
    top = _top_k(graph, uses.producer(node.inputs[0], "TopK"))
    if top is None or node.inputs[0] != top.node.outputs[0]:
        return None
    rank = len(graph.values[top.x].shape)
    in_order = node.is_op("ReduceMin") or int(top.node.attrs.get("sorted", 1)) == 1
    return top if in_order and _picks_last(graph, node, top.k, rank) else None


def _picks_last(graph: Graph, node: Node, k: int, rank: int) -> bool:
    """Whether a Slice, Gather or ReduceMin of k values that fall along the last axis yields the smallest."""
    last = (-1, rank - 1)
    if node.is_op("ReduceMin"):
        axes = integers(graph, node, "axes", 1)
        return axes is not None and len(axes) == 1 and axes[0] in last
    if node.is_op("Gather"):
        at = graph.constant(node.inputs[1])
        return (
            int(node.attrs.get("axis", 0)) in last
            and at is not None
            and at.size == 1
            and int(at.reshape(-1)[0]) in (-1, k - 1)
        )
    starts, ends = integers(graph, node, "starts", 1), integers(graph, node, "ends", 2)
    axes, steps = integers(graph, node, "axes", 3) or list(range(len(starts or []))), integers(graph, node, "steps", 4)
    if starts is None or ends is None or len(starts) != 1 or axes[0] not in last or (steps and steps != [1]):
        return False
    return starts[0] in (k - 1, -1) and ends[0] >= k


def _is_constant(graph: Graph, name: str, value: float) -> bool:
    data = graph.constant(name)
    return data is not None and bool(np.all(data == value))
