"""Move Reshapes from between layers and what can be fused into them, behind both.

Before:  y = matmul(Reshape(x)); z = Gelu(Reshape(y))              After:  z = Gelu(matmul(x))
Before:  a = matmul(p); r = Relu(Reshape(a)); b = matmul(Reshape(r))    After:  b = matmul(Relu(matmul(p)))

A product knows tokens, of any rank; so a Reshape that keeps the features is none of its business. GPT-2 has one on each
side of every product, and squeeze-and-excitation around its activations, since its 1x1 convolutions see one pixel.
"""

from __future__ import annotations

import numpy as np

from sparsetvm.core.graph import SPARSETVM_DOMAIN, Graph, Node
from sparsetvm.rewrite.canonical.edit import Uses, split_constant
from sparsetvm.rewrite.canonical.merge_reshapes import RESHAPES, merge_reshapes

_ACTIVATIONS = ("Relu", "Sigmoid", "Gelu")
_OWN_ACTIVATIONS = ("Silu", "HardSwish", "Clip")


def move_reshapes(graph: Graph) -> bool:
    """Move every such Reshape as far as it goes; returns whether anything changed."""
    changed = False
    while _move_one(graph):
        changed = True
        merge_reshapes(graph)
    return changed


def _move_one(graph: Graph) -> bool:
    uses = Uses(graph)
    for node in graph.nodes:
        if node.is_op("matmul", domain=SPARSETVM_DOMAIN):
            reshape = uses.producer(node.inputs[0], *RESHAPES)
            m, k = node.attrs["weight"].shape
            shape = graph.values[reshape.inputs[0]].shape if reshape is not None else ()
            if reshape is not None and len(shape) > 1 and shape[-1] == k:
                _move(graph, reshape, node, (*shape[:-1], m))
                return True
            continue
        x = _computed(graph, node)
        reshape = uses.producer(x, *RESHAPES)
        if reshape is not None and uses.sole_user(x) is node and _of_layer(uses, reshape.inputs[0]):
            shape = graph.values[reshape.inputs[0]].shape
            if not node.is_op("Add") or shape[-1] == graph.values[x].shape[-1]:
                _move(graph, reshape, node, shape)
                return True
    return False


def _computed(graph: Graph, node: Node) -> str:
    """What an activation or the sum with a bias reads, "" for other nodes."""
    if node.is_op(*_ACTIVATIONS) or node.is_op(*_OWN_ACTIVATIONS, domain=SPARSETVM_DOMAIN):
        return node.inputs[0]
    parts = split_constant(graph, node) if node.is_op("Add") else None
    same = parts is not None and graph.values[parts[0]].shape == graph.values[node.outputs[0]].shape
    return parts[0] if parts is not None and parts[1].ndim <= 1 and same else ""


def _of_layer(uses: Uses, name: str) -> bool:
    """True when a product computes the value for one reader: what follows it may become its epilogue."""
    return uses.producer(name, "matmul", domain=SPARSETVM_DOMAIN) is not None and uses.sole_user(name) is not None


def _move(graph: Graph, reshape: Node, node: Node, shape: tuple[int, ...]) -> None:
    """Let `node`, which reads the Reshape, read what that one reads and give a result of `shape`; reshape this."""
    out = graph.values[node.outputs[0]]
    before = graph.add_value(f"{out.name}.before", shape, out.dtype)
    target = graph.add_constant(f"{out.name}.shape", np.array(out.shape, np.int64))
    node.inputs = [reshape.inputs[0] if name == reshape.outputs[0] else name for name in node.inputs]
    node.outputs = [before.name]
    name = f"{reshape.name}.behind.{node.name}"
    moved = Node(name, "Reshape", [before.name, target.name], [out.name], {}, origin=reshape.origin or (reshape.name,))
    graph.nodes.insert(graph.nodes.index(node) + 1, moved)
    graph.prune_dead()
