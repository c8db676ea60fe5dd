"""ReduceMax and ReduceMin as IEEE 754 and ONNX have them.

TVM's own start from the largest finite number, so that the maximum of infinities alone is finite (a row of attention
that is masked as a whole), let a NaN win or lose by its position, and refuse bool.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from tvm import te, tirx

from sparsetvm.core.graph import Graph, Node


def emit_extreme(builder: Any, x: Any, node: Node, graph: Graph) -> Any:
    """The reduction of `x`, the expression of the node's first input."""
    value, out = graph.values[node.inputs[0]], graph.values[node.outputs[0]]
    axes = _axes(node, graph, len(value.shape))
    larger = node.op == "ReduceMax"
    return builder.emit_te(_reduced, x, axes, out.shape, value.dtype, larger, primfunc_name_hint=node.op.lower())


def has_axes(node: Node, graph: Graph) -> bool:
    """False when nothing is reduced, or the axes are computed."""
    given = len(node.inputs) > 1 and bool(node.inputs[1])
    return (not given or graph.constant(node.inputs[1]) is not None) and bool(
        _axes(node, graph, len(graph.values[node.inputs[0]].shape))
    )


def _axes(node: Node, graph: Graph, rank: int) -> list[int]:
    named = graph.constant(node.inputs[1]) if len(node.inputs) > 1 else None
    axes = [int(axis) for axis in (node.attrs.get("axes") or [] if named is None else named)]
    if not axes:
        return [] if node.attrs.get("noop_with_empty_axes", 0) else list(range(rank))
    return sorted(axis % rank for axis in axes)


def _reduced(x: Any, axes: list[int], shape: tuple[int, ...], dtype: str, larger: bool) -> Any:
    kind = "int8" if dtype == "bool" else dtype
    is_float = np.dtype(kind).kind == "f"

    def combine(a: Any, b: Any) -> Any:
        first = a > b if larger else a < b
        return tirx.Select(tirx.Or(first, tirx.isnan(a)) if is_float else first, a, b)

    def identity(_: str) -> Any:
        if is_float:
            return tirx.const(-math.inf if larger else math.inf, kind)
        limits = np.iinfo(kind)
        return tirx.const(int(limits.min if larger else limits.max), kind)

    reducer = te.comm_reducer(combine, identity, name="maximum" if larger else "minimum")
    reduced = [te.reduce_axis((0, x.shape[axis]), name=f"r{axis}") for axis in axes]
    kept = len(shape) == len(x.shape)

    def element(*at: Any) -> Any:
        rest = [index for d, index in enumerate(at) if d not in axes] if kept else list(at)
        indices = [reduced[axes.index(d)] if d in axes else rest.pop(0) for d in range(len(x.shape))]
        return reducer(x(*indices).astype(kind), axis=reduced)

    result = te.compute(shape, element, name="extreme")
    return result if kind == dtype else te.compute(shape, lambda *at: result(*at).astype(dtype), name="as_bool")
