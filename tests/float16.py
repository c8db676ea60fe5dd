"""Float16 forms of small float32 models as converters write them: float16 constants, Casts around what stays wide."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from models import ModelBuilder, random_inputs
from onnx import TensorProto, helper, numpy_helper

# Inputs whose type does not follow the model's: the scales of Resize.
_ALWAYS_FLOAT32 = {"Resize": (2,)}


def to_float16(model: onnx.ModelProto, *, keep_io: bool = False, blocked: Iterable[str] = ()) -> onnx.ModelProto:
    """The model in float16.

    keep_io: inputs and outputs stay float32, with Casts behind and before them. blocked: operators computed in float32
    between Casts; all of their inputs and their only output must be floats.
    """
    half = onnx.ModelProto()
    half.CopyFrom(model)
    graph = half.graph
    fixed = {
        node.input[at]
        for node in graph.node
        for at in _ALWAYS_FLOAT32.get(node.op_type, ())
        if at < len(node.input) and node.input[at]
    }
    for tensor in graph.initializer:
        if tensor.name not in fixed:
            _narrow(tensor)
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _narrow(attribute.t)
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
        nodes.extend(_between_casts(node, fixed) if node.op_type in blocked else [node])
    del graph.node[:], graph.value_info[:]
    constants = {tensor.name for tensor in graph.initializer}
    given = [i for i in graph.input if i.name not in constants and _is_float(i)]
    made = [o for o in graph.output if _is_float(o)]
    if keep_io:
        for node in nodes:
            _rename(node.input, {i.name: f"{i.name}_half" for i in given} | {o.name: f"{o.name}_half" for o in made})
            _rename(node.output, {o.name: f"{o.name}_half" for o in made})
        before = [helper.make_node("Cast", [i.name], [f"{i.name}_half"], to=TensorProto.FLOAT16) for i in given]
        after = [helper.make_node("Cast", [f"{o.name}_half"], [o.name], to=TensorProto.FLOAT) for o in made]
        nodes = [*before, *nodes, *after]
    else:
        for info in [*given, *made]:
            info.type.tensor_type.elem_type = TensorProto.FLOAT16
    graph.node.extend(nodes)
    onnx.checker.check_model(half, full_check=True)
    return half


def half_inputs(model: onnx.ModelProto, seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs of a float16 model, and of its float32 form: numbers that float16 has, in the model's own types."""
    types = {info.name: info.type.tensor_type.elem_type for info in model.graph.input}
    rounded = {name: array.astype(np.float16) for name, array in random_inputs(model, seed).items()}
    return {name: array.astype(helper.tensor_dtype_to_np_dtype(types[name])) for name, array in rounded.items()}


def rounded(builder: ModelBuilder) -> ModelBuilder:
    """`builder` with weights and constants that float16 has: the exact meaning of its float16 form."""
    for tensor in builder.initializers:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32:
            exact = array.astype(np.float16).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(exact, tensor.name))
    return builder


def _narrow(tensor: onnx.TensorProto) -> None:
    if tensor.data_type == TensorProto.FLOAT:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))


def _is_float(info: onnx.ValueInfoProto) -> bool:
    return info.type.tensor_type.elem_type == TensorProto.FLOAT


def _rename(names: list[str], new: dict[str, str]) -> None:
    for at, name in enumerate(names):
        names[at] = new.get(name, name)


def _between_casts(node: onnx.NodeProto, fixed: set[str]) -> list[onnx.NodeProto]:
    before = []
    for at, name in enumerate(node.input):
        if name and name not in fixed:
            node.input[at] = f"{name}_to_{node.name}_{at}"
            before.append(helper.make_node("Cast", [name], [node.input[at]], to=TensorProto.FLOAT))
    out, node.output[0] = node.output[0], f"{node.output[0]}_wide"
    return [*before, node, helper.make_node("Cast", [node.output[0]], [out], to=TensorProto.FLOAT16)]
