"""Which values the integer inputs of a model admit, and which of them random draws may take.

    ids  -> Gather of a table of 1000 rows         admitted -1000 to 999, drawn from 0 to 999
    mask -> Cast to bool -> Where                  any, drawn from 0 and 1
    mask -> CumSum -> Add 2 -> Gather of 2050      any, drawn from 0 and 1, since no sum of those leaves the table
    ids  -> Add 1000 -> Gather                     any, never drawn: nothing is known

Two questions, asked separately. What is admitted follows from the operators that look every element of the input up in
a table as it is, behind others that only move elements. What may be drawn is a guess (below the smallest table, else 0
and 1) that has to prove itself: intervals of all integer values (interval arithmetic: Moore, Interval Analysis, 1966)
must lie within every table that they index. An operator without a rule here proves nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsetvm.analysis.intervals import Interval, Traced, limits_of, trace_intervals
from sparsetvm.core.graph import Graph, IntegerInput, Node
from sparsetvm.core.index_operands import counts_back, index_operand, sizes_of

_MOVES = frozenset(("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Expand", "Concat"))
_PICKS = frozenset(("Slice", "Split", "Gather", "GatherElements", "GatherND"))  # some elements of the first operand
_MASK = 2


@dataclass(frozen=True)
class _Tables:
    """The tables that a value indexes. all: the smallest whose size every element keeps to. any: the smallest."""

    all: int | None = None
    any: int | None = None


def integer_inputs(graph: Graph) -> dict[str, IntegerInput]:
    """For every integer and bool input of a model as it was imported what is known of its values."""
    names = [name for name in graph.inputs if np.dtype(graph.values[name].dtype).kind in "iub"]
    if not names:
        return {}
    tables = _tables(graph)
    draws = {}
    for name in names:
        most = limits_of(graph.values[name].dtype).high
        smallest = tables[name].any
        draws[name] = max(1, min(_MASK if smallest is None else smallest, most + 1))
    traced = trace_intervals(graph, {name: Interval(0, below - 1) for name, below in draws.items()})
    refused = _refused(graph, traced)
    return {
        name: IntegerInput(_range(graph.values[name].dtype, tables[name].all), None if name in refused else draws[name])
        for name in names
    }


def merged(members: list[dict[str, IntegerInput]]) -> dict[str, IntegerInput]:
    """What holds for one model read for several sizes: ranges on which all agree, draws that suit all."""
    first, *others = members
    found = {}
    for name, own in first.items():
        same = [member[name] for member in others]
        below = [each.random_below for each in (own, *same)]
        known = [number for number in below if number is not None]
        found[name] = IntegerInput(
            own.range if all(each.range == own.range for each in same) else None,
            min(known) if len(known) == len(below) else None,
        )
    return found


def _range(dtype: str, size: int | None) -> tuple[int, int] | None:
    """The values of a type that index a table of `size` elements; None when all do."""
    if size is None or dtype == "bool":
        return None
    limits = limits_of(dtype)
    low, high = max(limits.low, -size), min(limits.high, size - 1)
    return None if (low, high) == (limits.low, limits.high) else (low, high)


def _tables(graph: Graph) -> dict[str, _Tables]:
    """Every value -> the tables that its elements index unchanged."""
    found = dict.fromkeys(graph.values, _Tables())
    for node in reversed(graph.nodes):
        at = index_operand(node.op, node.domain)
        if at is not None:
            sizes = sizes_of(graph, node)
            # Of coordinates every place along the last axis has a size of its own.
            # Indices that count from the start only leave the range open: nothing says what others mean.
            _add(found, node.inputs[at], _Tables(max(sizes) if counts_back(node.op) else None, min(sizes)))
        if node.domain:
            continue
        behind = [found[name] for name in node.outputs if name]
        if node.op in _MOVES or _keeps_numbers(graph, node):
            for name in node.inputs if node.op == "Concat" else node.inputs[:1]:
                _add(found, name, behind[0])
        elif node.op in _PICKS:
            for tables in behind:
                _add(found, node.inputs[0], _Tables(None, tables.any))
    return found


def _add(found: dict[str, _Tables], name: str, tables: _Tables) -> None:
    own = found[name]
    found[name] = _Tables(_smaller(own.all, tables.all), _smaller(own.any, tables.any))


def _smaller(a: int | None, b: int | None) -> int | None:
    return b if a is None else a if b is None else min(a, b)


def _keeps_numbers(graph: Graph, node: Node) -> bool:
    """A Cast between integers that changes no number that can be an index: to signed ones, or to more bits."""
    if node.op != "Cast":
        return False
    source, out = (np.dtype(graph.values[name].dtype) for name in (node.inputs[0], node.outputs[0]))
    if (source.kind, out.kind) == ("i", "i"):
        return True
    return source.kind == "u" and out.kind in "iu" and out.itemsize > source.itemsize


def _refused(graph: Graph, traced: Traced) -> set[str]:
    """Inputs of which a drawn value might index beyond a table, or reach an operator without a rule."""
    refused = set(traced.unsafe)
    for node in graph.nodes:
        at = index_operand(node.op, node.domain)
        if at is None:
            continue
        size = min(sizes_of(graph, node))
        least = -size if counts_back(node.op) else 0
        interval = traced.intervals[node.inputs[at]]
        if interval is None or interval.low < least or interval.high >= size:
            refused |= traced.sources[node.inputs[at]]
    return refused
