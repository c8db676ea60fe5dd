"""Shape and dtype of one node's outputs, from static input shapes and the constants among its inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx
from onnx import defs, helper, shape_inference

from sparsetvm.core.graph import Value
from sparsetvm.errors import ModelError
from sparsetvm.frontend.names import display_name, display_shape
from sparsetvm.frontend.shapes import dtype_name
from sparsetvm.frontend.to_onnx import tensor_proto, value_info

# Larger constants are weights: their values never decide a shape.
_MAX_SHAPE_DATA = 4096


def infer_outputs(node: onnx.NodeProto, inputs: Mapping[str, Value], opset: int, layer: str) -> list[Value]:
    """The outputs of `node` as values without data (those named "" are left out).

    Raises ModelError when the operator rejects its inputs, or when a shape depends on data.
    """
    types, error = _infer_one(node, inputs, opset)
    if any(_static_shape(types.get(name)) is None for name in node.output if name):
        whole, whole_error = _infer_model(node, inputs, opset)
        types, error = {**types, **whole}, error or whole_error
    values = []
    for name in node.output:
        if not name:
            continue
        shape = _static_shape(types.get(name))
        if shape is None:
            raise _no_shape(node, inputs, name, error, layer)
        elem_type = types[name].tensor_type.elem_type
        values.append(Value(name, shape, dtype_name(elem_type, f"output '{display_name(name)}' of '{layer}'")))
    return values


def check_node(node: onnx.NodeProto, opset: int, layer: str) -> None:
    """The node against the operator's schema: number of inputs and outputs, attributes and their types."""
    context = onnx.checker.C.CheckerContext()
    context.ir_version = onnx.IR_VERSION
    context.opset_imports = {"": opset}
    try:
        onnx.checker.check_node(node, context)
    except onnx.checker.ValidationError as error:
        raise ModelError(
            f"not a valid {node.op_type}: {_first_line(error)}",
            layer=layer,
            hint="check it with onnx.checker.check_model(path, full_check=True)",
        ) from error


def _no_shape(node: onnx.NodeProto, inputs: Mapping[str, Value], output: str, error: str, layer: str) -> ModelError:
    shapes = ", ".join(display_shape(inputs[name].shape) for name in node.input if name)
    if error:
        what = f"{node.op_type} of inputs {shapes} is not valid: {error}"
        return ModelError(
            what, layer=layer, hint="check the model with onnx.checker.check_model(path, full_check=True)"
        )
    what = f"the shape of output '{display_name(output)}' of {node.op_type} cannot be determined before it runs"
    return ModelError(what, layer=layer, hint="export the model with fixed shapes; shapes must not depend on data")


def _infer_one(node: onnx.NodeProto, inputs: Mapping[str, Value], opset: int) -> tuple[dict[str, onnx.TypeProto], str]:
    schema = defs.get_schema(node.op_type, opset, node.domain)
    types = {name: value_info(inputs[name]).type for name in node.input if name}
    data = {
        name: tensor_proto(value.data, name)
        for name in node.input
        if name and (value := inputs[name]).data is not None and value.data.size <= _MAX_SHAPE_DATA
    }
    try:
        found = shape_inference.infer_node_outputs(
            schema, node, types, data, opset_imports=[helper.make_opsetid("", opset)]
        )
    except (shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError, ValueError) as error:
        return {}, _first_line(error)
    return dict(found), ""


def _infer_model(
    node: onnx.NodeProto, inputs: Mapping[str, Value], opset: int
) -> tuple[dict[str, onnx.TypeProto], str]:
    """Inference over a model of this node alone: reaches operators that are defined as functions."""
    names = dict.fromkeys(name for name in node.input if name)
    small = {
        name: value for name in names if (value := inputs[name]).data is not None and value.data.size <= _MAX_SHAPE_DATA
    }
    graph = helper.make_graph(
        [node],
        "node",
        [value_info(inputs[name]) for name in names if name not in small],
        [onnx.ValueInfoProto(name=name) for name in node.output if name],
        [tensor_proto(value.data, name) for name, value in small.items() if value.data is not None],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    # onnx makes up a symbol for each element of a vector of integers, whatever its size.
    data_prop = all(math.prod(inputs[name].shape) <= _MAX_SHAPE_DATA for name in names)
    try:
        inferred = shape_inference.infer_shapes(model, strict_mode=True, data_prop=data_prop)
    except (shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError, ValueError) as error:
        return {}, _first_line(error)
    return {info.name: info.type for info in inferred.graph.output if info.HasField("type")}, ""


def _static_shape(found: onnx.TypeProto | None) -> tuple[int, ...] | None:
    if found is None or not found.HasField("tensor_type") or not found.tensor_type.HasField("shape"):
        return None
    dims = found.tensor_type.shape.dim
    if not all(dim.HasField("dim_value") and dim.dim_value >= 0 for dim in dims):
        return None
    return tuple(int(dim.dim_value) for dim in dims)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return display_name(lines[0], 300) if lines else type(error).__name__
