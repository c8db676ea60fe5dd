"""Compute in float32 what the model computes in float16; its inputs and outputs keep their type.

Before:  x (float16) -> MatMul (float16 weights) -> Cast to float32 -> Softmax -> Cast to float16 -> y
After:   x (float16) -> Cast to float32 -> MatMul (float32 weights) -> Softmax -> Cast to float16 -> y

Every float16 number is a float32 number, so weights keep their values and their zeros. Sums of float32 round far less
than those of any float16 runtime, and nothing between an input and an output overflows at 65504.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from sparsetvm.core.graph import Graph, Node
from sparsetvm.rewrite.canonical.edit import bypass

_WIDE = int(onnx.TensorProto.FLOAT)
_NARROW = int(onnx.TensorProto.FLOAT16)
# Attributes that hold an element type: of the result, or of the computation.
_TYPE_ATTRIBUTES = ("to", "dtype", "stash_type", "softmax_precision")


def widen_float16(graph: Graph) -> bool:
    """Widen all values but the model's inputs and outputs and drop the Casts that are left without a purpose.

    Sets `graph.float16`; returns whether anything changed.
    """
    if not any(value.dtype == "float16" for value in graph.values.values()):
        return False
    graph.float16 = True
    for node in graph.nodes:
        node.attrs = {name: _wide_attribute(name, attribute) for name, attribute in node.attrs.items()}
    _convert_interface(graph)
    for value in graph.values.values():
        if value.dtype == "float16" and value.name not in (*graph.inputs, *graph.outputs):
            value.dtype = "float32"
            value.data = None if value.data is None else value.data.astype(np.float32)
    for node in [node for node in graph.nodes if node.is_op("Cast", "CastLike")]:
        source, out = (graph.values[name] for name in (node.inputs[0], node.outputs[0]))
        if source.dtype == out.dtype and not bypass(graph, node):
            node.op, node.inputs, node.attrs = "Identity", [source.name], {}
    graph.prune_dead()
    return True


def _convert_interface(graph: Graph) -> None:
    """Let the nodes read and write wide values in place of float16 inputs and outputs, with one Cast for each."""
    wide: dict[str, str] = {}
    read = {name for node in graph.nodes for name in node.inputs}
    before: list[Node] = []
    after: list[Node] = []
    for name in dict.fromkeys([*graph.inputs, *graph.outputs]):
        value = graph.values[name]
        computed = name not in graph.inputs and not value.is_constant
        if value.dtype != "float16" or not (computed or name in read):
            continue
        data = None if value.data is None else value.data.astype(np.float32)
        wide[name] = graph.add_value(f"{name}.float32", value.shape, "float32", data).name
        if computed:
            after.append(Node(wide[name], "Cast", [wide[name]], [name], {"to": _NARROW}))
        elif not value.is_constant:
            before.append(Node(wide[name], "Cast", [name], [wide[name]], {"to": _WIDE}))
    for node in graph.nodes:
        node.inputs = [wide.get(name, name) for name in node.inputs]
        node.outputs = [wide.get(name, name) for name in node.outputs]
    graph.nodes = [*before, *graph.nodes, *after]


def _wide_attribute(name: str, value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype == np.float16:
        return value.astype(np.float32)
    return _WIDE if name in _TYPE_ATTRIBUTES and value == _NARROW else value
