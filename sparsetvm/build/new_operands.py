"""A node with other operands, for TVM's importer, which knows operands by their names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sparsetvm.core.graph import Graph, Node, Value


@dataclass
class NewOperands:
    """The node, a graph that knows its operands, and the expressions of those that are new."""

    node: Node
    graph: Graph
    exprs: dict[str, Any]


def with_operands(node: Node, graph: Graph, new: Mapping[int, Any]) -> NewOperands:
    """The node with a new expression for each operand in `new`, by position, of the shape and type of the old one."""
    inputs, values, exprs = list(node.inputs), dict(graph.values), {}
    for at, expr in new.items():
        old, name = graph.values[inputs[at]], f"{node.name}.operand.{at}"
        inputs[at], values[name], exprs[name] = name, Value(name, old.shape, old.dtype), expr
    return NewOperands(replace(node, inputs=inputs), replace(graph, values=values), exprs)
