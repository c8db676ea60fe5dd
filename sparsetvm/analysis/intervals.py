"""Intervals of the integer values of a graph, given those of its inputs.

An interval holds all numbers that a value can have; None is said where a rule is missing or the type might overflow.
Floats are not followed: what is computed of them and rounded again is unknown, and comes from no integer input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from sparsetvm.core.graph import Graph, Node, Value

_MOVES = frozenset(("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Expand", "Slice", "Split"))
_CHOOSES = {"Concat": 0, "Gather": 0, "GatherElements": 0, "GatherND": 0, "Where": 1, "Max": 0, "Min": 0}
_TRUTHS = frozenset(("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "And", "Or", "Xor"))


@dataclass(frozen=True)
class Interval:
    """All whole numbers from low to high."""

    low: int
    high: int

    def hull(self, other: Interval) -> Interval:
        """The smallest interval that holds both."""
        return Interval(min(self.low, other.low), max(self.high, other.high))


_TRUTH = Interval(0, 1)


@dataclass
class Traced:
    """intervals: of every integer and bool value, None where it is unknown. sources: the inputs that a value depends
    on, through integers only. unsafe: inputs that an operator without a rule depends on.
    """

    intervals: dict[str, Interval | None] = field(default_factory=dict)
    sources: dict[str, frozenset[str]] = field(default_factory=dict)
    unsafe: set[str] = field(default_factory=set)


def limits_of(dtype: str) -> Interval:
    """The numbers that an integer type, or bool, has."""
    if dtype == "bool":
        return _TRUTH
    limits = np.iinfo(dtype)
    return Interval(int(limits.min), int(limits.max))


def trace_intervals(graph: Graph, inputs: Mapping[str, Interval]) -> Traced:
    """Follow intervals through the nodes. inputs: those of the integer and bool inputs."""
    traced = Traced()
    for value in graph.values.values():
        if _is_integer(value):
            traced.intervals[value.name] = inputs.get(value.name) if value.data is None else _of_constant(value.data)
            traced.sources[value.name] = frozenset((value.name,) if value.name in inputs else ())
    for node in graph.nodes:
        read = [graph.values[name] for name in node.inputs if name]
        integers = [value for value in read if _is_integer(value)]
        sources = frozenset().union(*(traced.sources[value.name] for value in integers))
        ruled = _has_rule(graph, node)
        if not ruled:
            traced.unsafe |= sources
        for name in node.outputs:
            if name and _is_integer(graph.values[name]):
                found = _interval(graph, node, traced, graph.values[name]) if ruled else None
                traced.intervals[name], traced.sources[name] = found, sources
    return traced


def _is_integer(value: Value) -> bool:
    return np.dtype(value.dtype).kind in "iub"


def _of_constant(data: np.ndarray) -> Interval | None:
    return Interval(int(data.min()), int(data.max())) if data.size else None


def _has_rule(graph: Graph, node: Node) -> bool:
    """Whether an operator does with integers what is known here: computes, compares, moves or looks up."""
    if node.domain:
        return False
    if node.op in _MOVES:  # what says where to may not be computed
        return all(graph.values[name].is_constant for name in node.inputs[1:] if name)
    if node.op in ("CumSum", "ReduceSum"):
        return len(node.inputs) < 2 or not node.inputs[1] or graph.constant(node.inputs[1]) is not None
    return node.op in _CHOOSES or node.op in _TRUTHS or node.op in _ARITHMETIC or node.op in _OTHERS


def _interval(graph: Graph, node: Node, traced: Traced, out: Value) -> Interval | None:
    """The interval of an output, None when it is unknown or does not fit its type."""
    if out.dtype == "bool":
        return _TRUTH
    operands = [traced.intervals.get(name) for name in node.inputs if name]
    if node.op in _MOVES or node.op == "Cast":
        found = operands[0]
    elif node.op in _CHOOSES:
        first = _CHOOSES[node.op]
        found = _hull(operands[first : first + 1] if node.op.startswith("Gather") else operands[first:])
    elif node.op in ("ArgMax", "ArgMin"):
        shape = graph.values[node.inputs[0]].shape
        found = Interval(0, shape[int(node.attrs.get("axis", 0))] - 1)
    elif node.op in ("CumSum", "ReduceSum"):
        found = None if operands[0] is None else _sum(operands[0], _terms(graph, node, out))
    else:
        rule = _ARITHMETIC.get(node.op)
        known = [operand for operand in operands if operand is not None]
        found = rule(*known) if rule is not None and len(known) == len(operands) else None
    limits = limits_of(out.dtype)
    return None if found is None or found.low < limits.low or found.high > limits.high else found


def _hull(operands: list[Interval | None]) -> Interval | None:
    known = [operand for operand in operands if operand is not None]
    if len(known) < len(operands) or not known:
        return None
    return Interval(min(each.low for each in known), max(each.high for each in known))


def _terms(graph: Graph, node: Node, out: Value) -> int:
    """The most elements that are added up."""
    source = graph.values[node.inputs[0]]
    if node.op == "CumSum":
        axis = graph.constant(node.inputs[1])
        return source.shape[int(axis.reshape(()))] if axis is not None else math.prod(source.shape)
    return math.prod(source.shape) // max(1, math.prod(out.shape))


def _sum(term: Interval, most: int) -> Interval:
    """Of no term up to `most`."""
    return Interval(min(0, term.low * most), max(0, term.high * most))


def _products(a: Interval, b: Interval) -> Interval:
    corners = [x * y for x in (a.low, a.high) for y in (b.low, b.high)]
    return Interval(min(corners), max(corners))


_ARITHMETIC: dict[str, Callable[..., Interval]] = {
    "Add": lambda a, b: Interval(a.low + b.low, a.high + b.high),
    "Sub": lambda a, b: Interval(a.low - b.high, a.high - b.low),
    "Mul": _products,
    "Neg": lambda a: Interval(-a.high, -a.low),
    "Abs": lambda a: Interval(0, max(abs(a.low), abs(a.high))),
}
# Results of all behind ArgMin are unknown. OneHot takes any number, and indices are looked at by who asks for them.
_OTHERS = frozenset(
    ("Cast", "ArgMax", "ArgMin", "OneHot", "Scatter", "ScatterElements", "ScatterND", "MaxUnpool", "RoiAlign")
)
