"""Back from the graph to ONNX: one node for TVM's importer, or the whole graph for tests and debugging."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import defs, helper, numpy_helper

from sparsetvm.core.graph import SPARSETVM_DOMAIN, Graph, Node, Value

_IR_VERSION = 8


def node_proto(node: Node, opset: int) -> onnx.NodeProto:
    """The ONNX form of a node of the default domain. Attribute types come from the operator's schema."""
    proto = onnx.NodeProto(op_type=node.op, name=node.name, domain=node.domain)
    proto.input.extend(node.inputs)
    proto.output.extend(node.outputs)
    schema = defs.get_schema(node.op, opset, node.domain) if defs.has(node.op, opset, node.domain) else None
    for name, value in sorted(node.attrs.items()):
        declared = schema.attributes[name].type.value if schema and name in schema.attributes else None
        proto.attribute.append(_attribute(name, value, declared))
    return proto


def _attribute(name: str, value: Any, declared: int | None) -> onnx.AttributeProto:
    if isinstance(value, np.ndarray):
        return helper.make_attribute(name, numpy_helper.from_array(np.ascontiguousarray(value)))
    if declared == onnx.AttributeProto.FLOAT:
        value = float(value)
    elif declared == onnx.AttributeProto.FLOATS:
        value = [float(v) for v in value]
    return helper.make_attribute(name, value, attr_type=declared)


def opset_of(node: Node, opset: int) -> int:
    """`opset`, or the first one that has the node's operator: passes may introduce newer ones (LayerNormalization)."""
    if node.domain or defs.has(node.op, opset):
        return opset
    return int(defs.get_schema(node.op).since_version)


def single_node_model(node: Node, graph: Graph) -> onnx.ModelProto:
    """A model of one node: computed inputs become graph inputs, constants initializers, outputs graph outputs.

    Clip, Silu and HardSwish of this project are written in ONNX operators. Raises ValueError for others that ONNX does
    not know.
    """
    opset = opset_of(node, graph.opset)
    names = list(dict.fromkeys(name for name in node.inputs if name))
    return _model(
        [node_proto(part, opset) for part in _standard(node)],
        node.op,
        opset,
        inputs=[graph.values[name] for name in names if not graph.values[name].is_constant],
        outputs=[graph.values[name] for name in node.outputs if name],
        constants=[graph.values[name] for name in names if graph.values[name].is_constant],
    )


def graph_to_onnx(graph: Graph) -> onnx.ModelProto:
    """The whole graph as an ONNX model. Raises ValueError when a node needs another opset than the graph's."""
    for node in graph.nodes:
        if opset_of(node, graph.opset) != graph.opset:
            raise ValueError(f"'{node.name}': {node.op} does not exist in opset {graph.opset} of the graph")
    protos = [node_proto(part, graph.opset) for node in graph.nodes for part in _standard(node)]
    inputs = [graph.values[name] for name in graph.inputs]
    outputs = [graph.values[name] for name in graph.outputs]
    constants = [value for value in graph.values.values() if value.is_constant]
    return _model(protos, graph.name or "graph", graph.opset, inputs=inputs, outputs=outputs, constants=constants)


def _standard(node: Node) -> list[Node]:
    """`node` in operators of the default domain."""
    if not node.domain:
        return [node]
    x, y = node.inputs[0], node.outputs[0]
    if node.is_op("Silu", domain=SPARSETVM_DOMAIN):
        gate = f"{y}.gate"
        return [Node(f"{node.name}.gate", "Sigmoid", [x], [gate]), Node(node.name, "Mul", [x, gate], [y])]
    if node.is_op("HardSwish", domain=SPARSETVM_DOMAIN):
        gate, slope = f"{y}.gate", {"alpha": 1.0 / 6.0, "beta": 0.5}
        return [Node(f"{node.name}.gate", "HardSigmoid", [x], [gate], slope), Node(node.name, "Mul", [x, gate], [y])]
    if node.is_op("Clip", domain=SPARSETVM_DOMAIN):
        # Max and Min take their bounds as inputs in every opset, Clip only from 11 on.
        names = [f"{y}.low", f"{y}.high"]
        bounds = [
            Node(f"{node.name}.{attr}", "Constant", [], [name], {"value": np.array(node.attrs[attr], np.float32)})
            for attr, name in zip(("low", "high"), names, strict=True)
        ]
        above = f"{y}.above"
        return [
            *bounds,
            Node(f"{node.name}.max", "Max", [x, names[0]], [above]),
            Node(node.name, "Min", [above, names[1]], [y]),
        ]
    raise ValueError(f"'{node.name}': {node.domain}.{node.op} is no ONNX operator")


def _model(
    nodes: Sequence[onnx.NodeProto],
    name: str,
    opset: int,
    *,
    inputs: Sequence[Value],
    outputs: Sequence[Value],
    constants: Sequence[Value],
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        name,
        [value_info(value) for value in inputs],
        [value_info(value) for value in outputs],
        [tensor_proto(value.data, value.name) for value in constants if value.data is not None],
    )
    ir_version = max(_IR_VERSION, helper.find_min_ir_version_for([helper.make_opsetid("", opset)], ignore_unknown=True))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def value_info(value: Value) -> onnx.ValueInfoProto:
    """Name, type and shape of a value."""
    return helper.make_tensor_value_info(value.name, element_type(value.dtype), list(value.shape))


def element_type(dtype: str) -> int:
    """ONNX element type of a numpy dtype name."""
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def tensor_proto(data: np.ndarray, name: str) -> onnx.TensorProto:
    """An initializer."""
    # ascontiguousarray turns a scalar into one dimension.
    return numpy_helper.from_array(np.ascontiguousarray(data).reshape(data.shape), name)
