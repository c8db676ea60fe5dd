"""Fuse what attention does to its scores into the softmax over them, where the attention as a whole stays unfused.

Before:  s = MatMul(Mul(q, scale), k); p = Softmax(Add(Mul(s, scale), mask))
         each part may be missing; Div for Mul; scales are constants of one element
After:   s = MatMul(q, k); p = masked_softmax(s, mask) {scale}

The mask, of any origin (padding, causality, relative positions), broadcasts to the scores along all axes but the last.
Scores are then written and read once, by kernels that exist on all targets.
"""

from __future__ import annotations

import math

from sparsetvm.core.graph import SPARSETVM_DOMAIN, Graph, Node
from sparsetvm.rewrite.canonical.edit import Uses, rewrite_node, split_constant


def fuse_masked_softmax(graph: Graph) -> bool:
    """Fuse what stands before every softmax over the last axis; returns whether anything changed."""
    changed = False
    for node in [node for node in graph.nodes if node.is_op("Softmax")]:
        changed |= _fuse(graph, node)
    if changed:
        graph.prune_dead()
    return changed


def _fuse(graph: Graph, softmax: Node) -> bool:
    uses, value = Uses(graph), graph.values[softmax.inputs[0]]
    axis = int(softmax.attrs.get("axis", -1 if graph.opset >= 13 else 1))
    if not value.shape or axis not in (-1, len(value.shape) - 1) or value.dtype != "float32" or value.is_constant:
        return False
    scores, masks, nodes, scale = value.name, [], [], 1.0
    add = _producer(uses, scores, "Add")
    if add is not None:
        parts = _masked(graph, uses, add, value.shape)
        if parts is not None:
            scores, mask = parts
            masks, nodes = [mask], [add]
    found = _scaled(graph, uses, scores)
    if found is not None:
        scores, scale, node = found
        nodes.append(node)
    product = _producer(uses, scores, "MatMul")
    if product is not None:
        for at, name in enumerate(product.inputs):
            found = _scaled(graph, uses, name)
            if found is not None:
                product.inputs[at], factor, node = found
                scale *= factor
                nodes.append(node)
    if not nodes:
        return False
    attrs = {"scale": scale}
    rewrite_node(softmax, "masked_softmax", [scores, *masks], attrs, domain=SPARSETVM_DOMAIN, replaces=nodes)
    return True


def _producer(uses: Uses, name: str, *ops: str) -> Node | None:
    """The node that computes `name` for one reader only."""
    node = uses.producer(name, *ops)
    return node if node is not None and uses.sole_user(name) is not None else None


def _masked(graph: Graph, uses: Uses, add: Node, shape: tuple[int, ...]) -> tuple[str, str] | None:
    """(scores, mask) of a sum: the scores have its shape, a product or its multiple before all others."""
    whole = [name for name in add.inputs if graph.values[name].shape == shape and not graph.values[name].is_constant]
    whole.sort(key=lambda name: uses.producer(name, "MatMul", "Mul", "Div") is None)
    if not whole:
        return None
    scores = whole[0]
    mask = graph.values[add.inputs[1] if add.inputs[0] == scores else add.inputs[0]]
    fits = mask.dtype == "float32" and mask.shape[-1:] == shape[-1:] and mask.name != scores
    return (scores, mask.name) if fits and len(mask.shape) <= len(shape) else None


def _scaled(graph: Graph, uses: Uses, name: str) -> tuple[str, float, Node] | None:
    """(x, factor, node) when a node computes `name` as x times or over a positive constant, and of x's shape."""
    node = _producer(uses, name, "Mul", "Div")
    parts = split_constant(graph, node) if node is not None else None
    if node is None or parts is None or parts[1].size != 1 or graph.values[name].dtype != "float32":
        return None
    source, factor = parts[0], float(parts[1].reshape(-1)[0])
    backwards = node.op == "Div" and node.inputs[0] != source
    if backwards or not 0.0 < factor < math.inf or graph.values[source].shape != graph.values[name].shape:
        return None
    return source, 1.0 / factor if node.op == "Div" else factor, node
