"""What the canonical passes share: who computes and reads a value, constants as scalars, and edits that keep names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from sparsetvm.core.graph import Graph, Node


class Uses:
    """Producers and readers of a graph's values at one moment; make a new one after an edit."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._producers = graph.producers()
        self._consumers = graph.consumers()

    def producer(self, name: str, *ops: str, domain: str = "") -> Node | None:
        """The node that computes `name`, when it is one of `ops` (any operator when none are given)."""
        node = self._producers.get(name)
        return node if node is not None and (not ops or node.is_op(*ops, domain=domain)) else None

    def sole_user(self, name: str) -> Node | None:
        """The only reader of `name`; None when there are more, or when `name` is an output of the model."""
        users = self._consumers.get(name, [])
        return users[0] if len(users) == 1 and name not in self._graph.outputs else None


def rewrite_each(graph: Graph, ops: Sequence[str], rule: Callable[[Graph, Node], bool]) -> bool:
    """Apply `rule` to every node of these operators that was there at the start; returns whether it changed any."""
    changed = False
    for node in [node for node in graph.nodes if node.is_op(*ops)]:
        changed |= rule(graph, node)
    if changed:
        graph.prune_dead()
    return changed


def split_constant(graph: Graph, node: Node) -> tuple[str, np.ndarray] | None:
    """(computed operand, constant operand) of a node of two inputs, in either order; None when it has no such pair."""
    if len(node.inputs) != 2 or not all(node.inputs):
        return None
    for computed, constant in (node.inputs, node.inputs[::-1]):
        data = graph.constant(constant)
        if data is not None and not graph.values[computed].is_constant:
            return computed, data
    return None


def scalar(graph: Graph, name: str) -> float | None:
    """The value of a constant of one element, else None."""
    data = graph.constant(name)
    return float(data.reshape(-1)[0]) if data is not None and data.size == 1 else None


def integers(graph: Graph, node: Node, attribute: str, index: int) -> list[int] | None:
    """Integers given as an attribute or (newer opsets) as constant input `index`; None when absent or computed."""
    if attribute in node.attrs:
        return [int(v) for v in node.attrs[attribute]]
    data = graph.constant(node.inputs[index]) if len(node.inputs) > index else None
    return None if data is None else [int(v) for v in data.reshape(-1)]


def merged_origin(nodes: Iterable[Node]) -> tuple[str, ...]:
    """The ONNX nodes behind several nodes, each once."""
    return tuple(dict.fromkeys(name for node in nodes for name in (node.origin or (node.name,))))


def rewrite_node(
    node: Node,
    op: str,
    inputs: Sequence[str],
    attrs: Mapping[str, object],
    *,
    domain: str = "",
    replaces: Iterable[Node] = (),
) -> None:
    """Turn `node` into another operator with the same outputs, standing for itself and for `replaces`."""
    node.origin = merged_origin([node, *replaces])
    node.op, node.inputs, node.attrs, node.domain = op, list(inputs), dict(attrs), domain


def drop_into(graph: Graph, kept: Node, dropped: Node) -> None:
    """Remove `dropped`, whose only output `kept` now computes in place of its own."""
    kept.outputs = list(dropped.outputs)
    kept.origin = merged_origin([kept, dropped])
    graph.nodes = [node for node in graph.nodes if node is not dropped]


def bypass(graph: Graph, node: Node) -> bool:
    """Remove `node`, whose only output equals its first input; False when the model's interface forbids it."""
    source, output = node.inputs[0], node.outputs[0]
    if output in graph.outputs:
        if source in graph.outputs or source in graph.inputs or graph.values[source].is_constant:
            return False
        old, new = source, output
    else:
        old, new = output, source
    graph.nodes = [other for other in graph.nodes if other is not node]
    for other in graph.nodes:
        other.inputs = [new if name == old else name for name in other.inputs]
        other.outputs = [new if name == old else name for name in other.outputs]
    return True
