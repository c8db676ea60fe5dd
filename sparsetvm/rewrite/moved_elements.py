"""Where the elements of a value come from, through operators that only move them.

Exporters split heads, and packed projections, in many ways: Reshape and Transpose in any order, Split, Slice, Gather of
an axis of three, factors in between. What they do is the same if the same elements end in the same places, and that
is compared here, not how it is written.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sparsetvm.core.graph import Graph, Node
from sparsetvm.rewrite.canonical.edit import Uses, integers, split_constant

_SHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
_MOST_ELEMENTS = 1 << 24
_Step = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Moved:
    """source: a value. elements: flat position there of each element of the moved value. factor: multiplied by."""

    source: str
    elements: np.ndarray
    factor: float


def moved_from(graph: Graph, uses: Uses, name: str) -> Moved | None:
    """Follow `name` back through all operators that move elements or scale all alike; None for a value too large."""
    steps: list[_Step] = []
    factor = 1.0
    while (node := uses.producer(name)) is not None:
        scaled = _scaling(graph, node)
        if scaled is not None:
            name, factor = scaled[0], factor * scaled[1]
            continue
        step = _step(graph, node, name)
        if step is None or graph.values[node.inputs[0]].is_constant:
            break
        steps.append(step)
        name = node.inputs[0]
    shape = graph.values[name].shape
    if math.prod(shape) > _MOST_ELEMENTS:
        return None
    elements: np.ndarray | None = np.arange(math.prod(shape), dtype=np.int32).reshape(shape)
    for step in reversed(steps):
        elements = _moved(step, elements)
    return None if elements is None else Moved(name, elements, factor)


def moved_to(graph: Graph, uses: Uses, name: str, wanted: np.ndarray) -> Node | None:
    """The node behind `name`, each the sole reader of the one before, after which the elements lie as in `wanted`.

    wanted: positions in the value `name`, flat.
    """
    shape = graph.values[name].shape
    if math.prod(shape) > _MOST_ELEMENTS:
        return None
    elements = np.arange(math.prod(shape), dtype=np.int32).reshape(shape)
    found = None
    while (node := uses.sole_user(name)) is not None and node.is_op(*_SHAPES, "Transpose"):
        step = _step(graph, node, node.outputs[0])
        after = None if step is None else _moved(step, elements)
        if after is None:
            break
        elements, name = after, node.outputs[0]
        if np.array_equal(elements.reshape(-1), wanted):
            found = node
    return found


def _moved(step: _Step, elements: np.ndarray | None) -> np.ndarray | None:
    """The elements after the step; None where its attributes do not fit them, which whoever runs the node reports."""
    try:
        return None if elements is None else step(elements)
    except (ValueError, IndexError):
        return None


def _scaling(graph: Graph, node: Node) -> tuple[str, float] | None:
    """(x, factor) of a product with a positive constant of one element, of x's shape."""
    parts = split_constant(graph, node) if node.is_op("Mul", "Div") else None
    if parts is None or parts[1].size != 1 or (node.op == "Div" and node.inputs[0] != parts[0]):
        return None
    factor = float(parts[1].reshape(-1)[0])
    same = graph.values[parts[0]].shape == graph.values[node.outputs[0]].shape
    if not same or not 0.0 < factor < math.inf:
        return None
    return parts[0], 1.0 / factor if node.op == "Div" else factor


def _step(graph: Graph, node: Node, out: str) -> _Step | None:
    """What a node that only moves elements does to an array; None for other nodes."""
    shape = graph.values[out].shape
    if node.is_op(*_SHAPES):
        return lambda x: x.reshape(shape)
    if node.is_op("Transpose"):
        perm = node.attrs.get("perm")
        return lambda x: x.transpose(perm)
    if node.is_op("Split"):
        axis = int(node.attrs.get("axis", 0))
        sizes = [graph.values[name].shape[axis] for name in node.outputs]
        begin = sum(sizes[: node.outputs.index(out)])
        index = np.arange(begin, begin + shape[axis])
        return lambda x: x.take(index, axis)
    if node.is_op("Gather"):
        axis, chosen = int(node.attrs.get("axis", 0)), graph.constant(node.inputs[1])
        return None if chosen is None else lambda x: x.take(chosen, axis)
    if node.is_op("Slice"):
        starts, ends, axes, steps = (
            integers(graph, node, name, at) for at, name in enumerate(("starts", "ends", "axes", "steps"), 1)
        )
        if starts is None or ends is None or axes is None:
            return None
        cut: list[slice] = [slice(None)] * len(graph.values[node.inputs[0]].shape)
        for axis, begin, end, by in zip(axes, starts, ends, steps or [1] * len(axes), strict=True):
            if by < 1:
                return None
            cut[axis] = slice(begin, end, by)
        return lambda x: x[tuple(cut)]
    return None
