"""Which operands of ONNX operators choose elements of a tensor by number, and how many there are to choose from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from sparsetvm.core.graph import Graph, Node

_Shape = tuple[int, ...]

_FROM_BOTH_ENDS = {"Gather": 1, "GatherElements": 1, "GatherND": 1, "Scatter": 1, "ScatterElements": 1, "ScatterND": 1}
_FROM_START = {"MaxUnpool": 1, "RoiAlign": 2}


def index_operand(op: str, domain: str = "") -> int | None:
    """The position of the indices among the inputs of an operator, None for one without any."""
    return None if domain else _FROM_BOTH_ENDS.get(op, _FROM_START.get(op))


def counts_back(op: str) -> bool:
    """Whether -1 means the last element."""
    return op in _FROM_BOTH_ENDS


def index_sizes(op: str, attrs: Mapping[str, Any], data: _Shape, indices: _Shape, out: _Shape) -> _Shape:
    """What the indices count: one size for all of them, or one for each place along their last axis (GatherND,
    ScatterND). An index may be 0 to size - 1, or -size to size - 1 where it `counts_back`.

    data: shape of the first operand. out: of the output. All fit the operator.
    """
    if op in ("GatherND", "ScatterND"):
        first = int(attrs.get("batch_dims", 0))
        return data[first : first + indices[-1]]
    if op == "MaxUnpool":
        return (math.prod(out),)
    return (data[int(attrs.get("axis", 0))],)


def sizes_of(graph: Graph, node: Node) -> _Shape:
    """`index_sizes` of a node of a graph that has indices."""
    at = index_operand(node.op, node.domain) or 0
    data, indices, out = (graph.values[name].shape for name in (node.inputs[0], node.inputs[at], node.outputs[0]))
    return index_sizes(node.op, node.attrs, data, indices, out)
