"""Fuse multi-head attention between its projections into one node.

Before:  q, k, v (B, S, H) each Reshape -> (B, S, heads, d) -> Transpose; MatMul(q, k^T); Div or Mul scale; Add mask;
         Softmax; MatMul(p, v); Transpose; Reshape -> (B, S, H)
After:   attention(q, k, v, mask) {heads, scale} on (B, S, H)

The kernel keeps tokens in vector lanes, so neither the transposes nor the softmax move data.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsetvm.core.graph import SPARSETVM_DOMAIN, Graph, Node
from sparsetvm.core.target import Target


def fuse_attention(graph: Graph, target: Target) -> bool:
    """Fuse every attention that has the shape above and that the kernel supports; returns whether anything changed."""
    changed = False
    for softmax in [node for node in graph.nodes if node.is_op("Softmax")]:
        found = _match(graph, softmax)
        if found is not None and _supported(graph, found, target):
            _replace(graph, found)
            changed = True
    if changed:
        graph.sort()
        graph.prune_dead()
    return changed


@dataclass
class _Attention:
    query: str
    key: str
    value: str
    mask: str
    scale: float
    heads: int
    output: Node
    origin: tuple[str, ...]


class _Walker:
    """Follows single-use chains through the graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.producers = graph.producers()
        self.consumers = graph.consumers()

    def producer(self, name: str, *ops: str) -> Node | None:
        node = self.producers.get(name)
        return node if node is not None and node.is_op(*ops) and self.single(name) else None

    def single(self, name: str) -> bool:
        return len(self.consumers[name]) == 1 and name not in self.graph.outputs

    def user(self, name: str, *ops: str) -> Node | None:
        if not self.single(name):
            return None
        node = self.consumers[name][0]
        return node if node.is_op(*ops) else None

    def scalar(self, name: str) -> float | None:
        data = self.graph.constant(name)
        return float(data.reshape(-1)[0]) if data is not None and data.size == 1 else None


def _match(graph: Graph, softmax: Node) -> _Attention | None:
    walk = _Walker(graph)
    shape = graph.values[softmax.inputs[0]].shape
    if len(shape) != 4 or softmax.attrs.get("axis", -1) not in (-1, 3):
        return None
    scores, mask, scale = softmax.inputs[0], "", 1.0
    add = walk.producer(scores, "Add")
    if add is not None:
        pair = [name for name in add.inputs if graph.values[name].shape == shape]
        mask = next((name for name in add.inputs if graph.values[name].shape != shape), "")
        if not pair or not mask:
            return None
        scores = pair[0]
    scaling = walk.producer(scores, "Div", "Mul")
    if scaling is not None:
        value = walk.scalar(scaling.inputs[1])
        if value is None:
            return None
        scale = 1.0 / value if scaling.op == "Div" else value
        scores = scaling.inputs[0]
    product = walk.producer(scores, "MatMul")
    context = walk.user(softmax.outputs[0], "MatMul")
    if product is None or context is None or context.inputs[0] != softmax.outputs[0]:
        return None
    merged = walk.user(context.outputs[0], "Transpose")
    output = walk.user(merged.outputs[0], "Reshape") if merged is not None else None
    if merged is None or output is None or list(merged.attrs.get("perm", [])) != [0, 2, 1, 3]:
        return None
    query = _split_source(walk, product.inputs[0], [0, 2, 1, 3])
    key = _split_source(walk, product.inputs[1], [0, 2, 3, 1])
    value_source = _split_source(walk, context.inputs[1], [0, 2, 1, 3])
    if query is None or key is None or value_source is None or not query[1] == key[1] == value_source[1]:
        return None
    batch, heads, tokens, _ = shape
    source_shape = graph.values[query[0]].shape
    same = graph.values[key[0]].shape == source_shape == graph.values[value_source[0]].shape
    if not same or source_shape[:-1] != (batch, tokens) or graph.values[output.outputs[0]].shape != source_shape:
        return None
    origin = tuple(name for n in (product, softmax, context) for name in (n.origin or (n.name,)))
    return _Attention(query[0], key[0], value_source[0], mask, scale, heads, output, origin)


def _split_source(walk: _Walker, name: str, perm: list[int]) -> tuple[str, int] | None:
    """(source (B, S, H), heads) of a head split Reshape + Transpose(perm)."""
    transpose = walk.producer(name, "Transpose")
    if transpose is None or list(transpose.attrs.get("perm", [])) != perm:
        return None
    reshape = walk.producer(transpose.inputs[0], "Reshape")
    if reshape is None:
        return None
    source, split = walk.graph.values[reshape.inputs[0]], walk.graph.values[reshape.outputs[0]].shape
    if len(source.shape) != 3 or len(split) != 4 or split[:2] != source.shape[:2]:
        return None
    return source.name, split[2]


def _supported(graph: Graph, found: _Attention, target: Target) -> bool:
    """No vector of query tokens reaches over the end of a batch entry; the mask broadcasts to (B, heads, S, S)."""
    batch, tokens, _ = graph.values[found.query].shape
    if batch * tokens < target.lanes or (batch > 1 and tokens % target.lanes):
        return False
    if not found.mask:
        return True
    mask = graph.values[found.mask].shape
    full = (batch, found.heads, tokens)
    return len(mask) == 4 and mask[3] == tokens and all(d in (1, size) for d, size in zip(mask[:3], full, strict=True))


def _replace(graph: Graph, found: _Attention) -> None:
    mask = [found.mask] if found.mask else []
    if found.mask and graph.values[found.mask].is_constant and not np.any(graph.values[found.mask].data):
        mask = []
    node = Node(
        found.origin[0],
        "attention",
        [found.query, found.key, found.value, *mask],
        list(found.output.outputs),
        {"heads": found.heads, "scale": found.scale},
        SPARSETVM_DOMAIN,
        found.origin,
    )
    graph.nodes[graph.nodes.index(found.output)] = node
