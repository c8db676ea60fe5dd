"""Attributes of ONNX nodes as plain Python values, and the operators that are nothing but an attribute."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from sparsetvm.core.graph import Value
from sparsetvm.errors import ModelError
from sparsetvm.frontend.constants import sparse_array, tensor_array
from sparsetvm.frontend.names import display_name

# Of a Constant: attribute -> its type and that of the value.
_NUMBERS = {
    "value_int": (onnx.AttributeProto.INT, np.int64),
    "value_ints": (onnx.AttributeProto.INTS, np.int64),
    "value_float": (onnx.AttributeProto.FLOAT, np.float32),
    "value_floats": (onnx.AttributeProto.FLOATS, np.float32),
}


def constant_data(node: onnx.NodeProto, layer: str) -> np.ndarray:
    """The value of a Constant node in any of the forms that the standard knows."""
    if len(node.attribute) != 1:
        raise ModelError("Constant must have exactly one value", layer=layer)
    attribute = node.attribute[0]
    if attribute.name == "sparse_value":
        return sparse_array(attribute.sparse_tensor, f"the value of '{layer}'")
    value = attribute_value(attribute, layer)
    if attribute.name == "value" and isinstance(value, np.ndarray):
        return value
    kind, dtype = _NUMBERS.get(attribute.name, (None, None))
    if kind != attribute.type:  # ONNX's checker lets a text that is named value_int pass
        raise ModelError(f"Constant of kind '{display_name(attribute.name)}' is not supported", layer=layer)
    return np.array(value, dtype)


def shape_data(node: onnx.NodeProto, value: Value | None) -> np.ndarray:
    """What Shape gives: all sizes, or those from `start` to `end` (opset 15)."""
    bounds = {attribute.name: attribute.i for attribute in node.attribute}
    sizes = value.shape if value is not None else ()
    return np.array(sizes[bounds.get("start", 0) : bounds.get("end", len(sizes))], np.int64)


def attribute_value(attribute: onnx.AttributeProto, layer: str) -> Any:
    kind, kinds = attribute.type, onnx.AttributeProto
    if attribute.ref_attr_name:
        raise ModelError(f"attribute '{display_name(attribute.name)}' refers to a function's attribute", layer=layer)
    if kind == kinds.TENSOR:
        return tensor_array(attribute.t, f"attribute '{display_name(attribute.name)}' of '{layer}'")
    if kind in (kinds.INT, kinds.FLOAT, kinds.INTS, kinds.FLOATS):
        value = onnx.helper.get_attribute_value(attribute)
        return list(value) if kind in (kinds.INTS, kinds.FLOATS) else value
    try:
        if kind == kinds.STRING:
            return attribute.s.decode("utf-8")
        if kind == kinds.STRINGS:
            return [text.decode("utf-8") for text in attribute.strings]
    except UnicodeDecodeError as error:
        raise ModelError(f"attribute '{display_name(attribute.name)}' is no UTF-8 text", layer=layer) from error
    raise ModelError(f"attribute '{display_name(attribute.name)}' is of a kind that is not supported", layer=layer)
