"""Merge chains of products and sums with constants into at most one of each.

Before:  m = Mul(x, a); s = Add(m, b); n = Mul(s, c); y = Sub(n, d)      (BatchNormalization followed by a scale layer)
After:   m = Mul(x, a * c); y = Add(m, b * c - d)
"""

from __future__ import annotations

import numpy as np

from sparsetvm.core.graph import Graph, Node
from sparsetvm.rewrite.canonical.edit import Uses, drop_into, rewrite_each, split_constant

_PRODUCTS = ("Mul", "Div")
_SUMS = ("Add", "Sub")


def merge_affine(graph: Graph) -> bool:
    """Merge every such chain; returns whether anything changed."""
    return rewrite_each(graph, (*_PRODUCTS, *_SUMS), _merge)


def _merge(graph: Graph, node: Node) -> bool:
    constant = _constant(graph, node)
    before = _before(graph, node)
    if constant is None or before is None:
        return False
    other = _constant(graph, before)
    if other is None:
        return False
    if node.op in _SUMS and before.op in _SUMS:
        _write(graph, before, "Add", other + constant)
    elif node.op in _PRODUCTS and before.op in _PRODUCTS:
        _write(graph, before, "Mul", other * constant)
    elif node.op in _PRODUCTS:
        first = _before(graph, before)
        factor = _constant(graph, first) if first is not None and first.op in _PRODUCTS else None
        if first is None or factor is None:
            return False
        _write(graph, first, "Mul", factor * constant)
        _write(graph, before, "Add", other * constant)
    else:
        return False
    drop_into(graph, before, node)
    return True


def _before(graph: Graph, node: Node) -> Node | None:
    """The product or sum with a constant that computes the operand of `node` and is read by nobody else."""
    parts = split_constant(graph, node)
    uses = Uses(graph)
    found = uses.producer(parts[0], *_PRODUCTS, *_SUMS) if parts is not None else None
    return found if found is not None and uses.sole_user(found.outputs[0]) is node else None


def _constant(graph: Graph, node: Node) -> np.ndarray | None:
    """The factor or addend (float64) that `node` applies to a tensor of its output's shape; None for c - x, c / x."""
    parts = split_constant(graph, node)
    if parts is None or (node.op in ("Sub", "Div") and node.inputs[0] != parts[0]):
        return None
    out = graph.values[node.outputs[0]]
    if out.dtype != "float32" or graph.values[parts[0]].shape != out.shape:
        return None
    value: np.ndarray = parts[1].astype(np.float64)
    if node.op == "Div":
        return 1.0 / value if np.all(value) and np.all(np.isfinite(value)) else None
    return -value if node.op == "Sub" else value


def _write(graph: Graph, node: Node, op: str, constant: np.ndarray) -> None:
    parts = split_constant(graph, node)
    if parts is not None:
        name = graph.add_constant(f"{node.name}.constant", constant.astype(np.float32)).name
        node.op, node.inputs = op, [parts[0], name]
