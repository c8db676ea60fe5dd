"""Operators that choose elements by computed indices: never beyond the table, whatever the indices are.

TVM's own trust indices, and read or write wherever they point. ONNX Runtime raises an error; a kernel cannot, so what
an index out of range chooses or writes is NaN, which shows in the results (unless a later index writes to the place at
the end of the table where it went). Tensors of other types, which have no NaN, get the element that is nearest.
Constant indices were checked when the model was read.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import relax, te, tirx

from sparsetvm.build.new_operands import NewOperands, with_operands
from sparsetvm.core.graph import Graph, Node, Value
from sparsetvm.core.index_operands import counts_back, index_operand, sizes_of

GATHERS = ("Gather", "GatherElements", "GatherND")
# The operand whose elements are written where the indices say.
_WRITTEN = {"Scatter": 2, "ScatterElements": 2, "ScatterND": 2, "MaxUnpool": 0}
_Guarded = tuple[NewOperands, Callable[[Any], Any]]


def needs_guard(node: Node, graph: Graph) -> bool:
    """True for operators with computed indices."""
    at = index_operand(node.op, node.domain)
    if node.is_op("MaxRoiPool"):
        at = 1
    return at is not None and not graph.values[node.inputs[at]].is_constant


def emit_gather(builder: Any, node: Node, graph: Graph, expr: Callable[[str], Any]) -> Any:
    """Gather, GatherElements or GatherND as one kernel that compares each index before it reads."""
    data, indices, out = (graph.values[name] for name in (*node.inputs, node.outputs[0]))
    sizes = sizes_of(graph, node)
    axis = int(node.attrs.get("axis", 0)) % len(data.shape)
    batch = int(node.attrs.get("batch_dims", 0))
    rank = len(indices.shape)

    def places(indices: Any, at: tuple[Any, ...]) -> tuple[tuple[Any, ...], list[Any], tuple[Any, ...]]:
        """For an element of the output the place in the data: axes before the indexed ones, indices, axes behind."""
        if node.op == "Gather":
            return at[:axis], [indices(*at[axis : axis + rank])], at[axis + rank :]
        if node.op == "GatherElements":
            return at[:axis], [indices(*at)], at[axis + 1 :]
        return at[:batch], [indices(*at[: rank - 1], place) for place in range(len(sizes))], at[rank - 1 :]

    def gathered(data: Any, indices: Any) -> Any:
        def element(*at: Any) -> Any:
            before, chosen, behind = places(indices, at)
            counted = [tirx.Select(index < 0, index + size, index) for index, size in zip(chosen, sizes, strict=True)]
            if not is_float:
                nearest = [te.min(te.max(index, 0), size - 1) for index, size in zip(counted, sizes, strict=True)]
                return data(*before, *nearest, *behind)
            right = tirx.all(*(tirx.all(i >= 0, i < size) for i, size in zip(counted, sizes, strict=True)))
            return tirx.if_then_else(right, data(*before, *counted, *behind), tirx.const(math.nan, out.dtype))

        return te.compute(out.shape, element, name="gathered")

    is_float = _is_float(data)
    return builder.emit_te(gathered, expr(data.name), expr(indices.name), primfunc_name_hint=node.op.lower())


def guard(builder: Any, node: Node, graph: Graph, expr: Callable[[str], Any]) -> _Guarded:
    """The node with indices that were moved into the table, and what makes the final result of its own: for all
    operators that are not in GATHERS.
    """
    if node.op == "MaxRoiPool":
        return _guard_regions(builder, node, graph, expr)
    at = index_operand(node.op, node.domain) or 0
    value, coordinates = graph.values[node.inputs[at]], node.op.endswith("ND")
    sizes = np.array(sizes_of(graph, node))
    size, most = (_const(each if coordinates else each[0], value.dtype) for each in (sizes, sizes - 1))
    counted = expr(value.name)
    if counts_back(node.op):
        counted = builder.emit(_from_start(counted, size, value.dtype))
    within = builder.emit(relax.op.minimum(relax.op.maximum(counted, _const(0, value.dtype)), most))
    right = builder.emit(relax.op.equal(within, counted))
    if coordinates:
        right = builder.emit(relax.op.min(relax.op.astype(right, "int8"), axis=[-1]))
        right = builder.emit(relax.op.astype(right, "bool"))
    new = {at: within}
    is_float = _is_float(graph.values[node.outputs[0]])
    written = _WRITTEN.get(node.op)
    if is_float and written is not None:
        name = node.inputs[written]
        new[written] = builder.emit(_or_nan(right, expr(name), graph.values[name]))

    def finish(result: Any) -> Any:
        return _or_nan(right, result, graph.values[node.outputs[0]]) if is_float and written is None else result

    return with_operands(node, graph, new), finish


def _guard_regions(builder: Any, node: Node, graph: Graph, expr: Callable[[str], Any]) -> _Guarded:
    """MaxRoiPool, whose regions of interest begin with the number of an image, as a float."""
    regions, count = graph.values[node.inputs[1]], graph.values[node.inputs[0]].shape[0]
    number, rest = (
        builder.emit(relax.op.strided_slice(expr(regions.name), [1], [begin], [end])) for begin, end in ((0, 1), (1, 5))
    )
    from_start = relax.op.greater_equal(number, _const(0, regions.dtype))  # false for NaN
    right = builder.emit(relax.op.logical_and(from_start, relax.op.less(number, _const(count, regions.dtype))))
    number = relax.op.where(right, number, _const(0, regions.dtype))
    of_image = builder.emit(relax.op.reshape(right, (regions.shape[0],)))
    numbered = builder.emit(relax.op.concat([builder.emit(number), rest], axis=1))
    changed = with_operands(node, graph, {1: numbered})
    return changed, lambda result: _or_nan(of_image, result, graph.values[node.outputs[0]])


def _const(data: Any, dtype: str) -> Any:
    """Without a type given, TVM makes int32 of int64."""
    return relax.const(np.array(data, dtype), dtype)


def _is_float(value: Value) -> bool:
    return np.dtype(value.dtype).kind == "f"


def _from_start(indices: Any, size: Any, dtype: str) -> Any:
    """Indices that count from the end of a table count from its start."""
    if np.dtype(dtype).kind == "u":
        return indices
    return relax.op.where(relax.op.less(indices, _const(0, dtype)), relax.op.add(indices, size), indices)


def _or_nan(right: Any, values: Any, value: Value) -> Any:
    """NaN where an index was wrong. right: of the first axes of `value`."""
    shape = tuple(int(size) for size in right.ty.shape)
    spread = relax.op.reshape(right, (*shape, *(1,) * (len(value.shape) - len(shape))))
    return relax.op.where(spread, values, _const(math.nan, value.dtype))
