"""Make products of their own of the parts of a product that are read apart, as of the packed Q, K and V.

Before:  y = matmul(x) {weight}; q, k = Split(y, axis=-1)        After:  q = matmul(x) {rows of q}; k = matmul(x) {...}

The parts then lie as their readers want them, each with an epilogue of its own, and nothing is copied. Where heads of
an attention that is not fused are cut out of the parts next, one product is better: its parts are moved anyway.
"""

from __future__ import annotations

import itertools

import numpy as np

from sparsetvm.core.graph import SPARSETVM_DOMAIN, Graph, Node
from sparsetvm.rewrite.canonical.edit import integers

_READERS = ("Add", "Mul", "Relu", "Sigmoid", "Gelu", "Tanh")
_OWN_READERS = ("attention", "rotary", "matmul", "Silu", "HardSwish", "Clip")


def split_products(graph: Graph) -> bool:
    """Split every product that only Split and Slice read, by parts that are apart and that readers want in its layout.

    Returns whether any was split.
    """
    changed = False
    consumers = graph.consumers()
    for node in [node for node in graph.nodes if node.is_op("matmul", domain=SPARSETVM_DOMAIN)]:
        users = consumers[node.outputs[0]]
        found = [_rows(graph, user) for user in users]
        if not users or node.outputs[0] in graph.outputs or node.attrs["epilogue"].residual or None in found:
            continue
        parts = sorted((begin, end, out) for rows in found for begin, end, out in rows or ())
        readers = [user for _, _, out in parts for user in consumers[out]]
        if not all(user.is_op(*_READERS) or user.is_op(*_OWN_READERS, domain=SPARSETVM_DOMAIN) for user in readers):
            continue
        if any(end > begin for (_, end, _), (begin, _, _) in itertools.pairwise(parts)):
            continue
        at = graph.nodes.index(node)
        graph.nodes[at : at + 1] = [_part(node, number, *part) for number, part in enumerate(parts)]
        graph.nodes = [other for other in graph.nodes if all(other is not user for user in users)]
        changed = True
    if changed:
        graph.prune_dead()
    return changed


def _rows(graph: Graph, user: Node) -> list[tuple[int, int, str]] | None:
    """(first row, end, value) of what a Split or Slice of the features makes; None for other nodes."""
    if not user.is_op("Split", "Slice"):
        return None
    shape = graph.values[user.inputs[0]].shape
    last = len(shape) - 1
    if user.is_op("Split"):
        if int(user.attrs.get("axis", 0)) % len(shape) != last:
            return None
        ends = np.cumsum([graph.values[name].shape[last] for name in user.outputs]).tolist()
        return list(zip([0, *ends[:-1]], ends, user.outputs, strict=True))
    starts, ends_, axes, steps = (
        integers(graph, user, name, at) for at, name in enumerate(("starts", "ends", "axes", "steps"), 1)
    )
    if not starts or not ends_ or not axes or len(axes) != 1 or axes[0] % len(shape) != last or (steps or [1]) != [1]:
        return None
    begin, end, _ = slice(starts[0], ends_[0]).indices(shape[last])
    return [(begin, end, user.outputs[0])] if begin < end else None


def _part(node: Node, number: int, begin: int, end: int, out: str) -> Node:
    """The product with some of the rows of the weight; the first keeps the name."""
    bias = node.attrs["bias"]
    attrs = {
        **node.attrs,
        "weight": np.ascontiguousarray(node.attrs["weight"][begin:end]),
        "bias": None if bias is None else np.ascontiguousarray(bias[begin:end]),
    }
    name = f"{node.name}.part{number}" if number else node.name
    return Node(name, "matmul", list(node.inputs), [out], attrs, SPARSETVM_DOMAIN, node.origin)
