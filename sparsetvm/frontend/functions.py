"""Inline functions: those that the model brings along, and standard operators that are only defined as functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from onnx import defs, inliner, version_converter

from sparsetvm.errors import ModelError
from sparsetvm.frontend.expansion import check_expansion
from sparsetvm.frontend.names import display_name
from sparsetvm.frontend.support import is_supported
from sparsetvm.frontend.to_onnx import element_type

# Its body loops over a sequence, which nothing here supports; the inliner (1.23) crashes when the file gives its input
# a type that is none.
_NEVER = ("SequenceMap",)
_INLINER_ERRORS = (
    RuntimeError,
    ValueError,
    onnx.checker.ValidationError,
    onnx.shape_inference.InferenceError,
    version_converter.ConvertError,
)


def inline_functions(model: onnx.ModelProto, constants: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """The model without local functions and without standard function operators that no kernel exists for.

    `constants` are the initializers that were taken out of the model: they get declared as inputs while types are
    inferred. Raises ModelError for functions that call themselves or are broken.
    """
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    lacking = {op for op in _ops(model) if not is_supported(op, "") and op not in _NEVER}
    wanted = sorted(("", op) for op in lacking if _is_function(op, opset))
    if not model.functions and not wanted:
        return model
    declared = {info.name for info in model.graph.input}
    for name, data in constants.items():
        if name not in declared:
            info = onnx.helper.make_tensor_value_info(name, element_type(str(data.dtype)), list(data.shape))
            model.graph.input.append(info)
    check_expansion(model)
    try:
        if model.functions:
            model = inliner.inline_local_functions(model, convert_version=True)
    except _INLINER_ERRORS as error:
        names = ", ".join(display_name(function.name) for function in model.functions)
        raise ModelError(
            f"functions cannot be inlined ({names}): {display_name(str(error))}",
            hint="check the model with onnx.checker.check_model(path, full_check=True)",
        ) from error
    if wanted:
        try:
            model = inliner.inline_selected_functions(model, wanted, inline_schema_functions=True)
        except _INLINER_ERRORS:
            # The walk over the nodes names these operators as unsupported, with their layers.
            return model
    return model


def _ops(model: onnx.ModelProto) -> Iterable[str]:
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        for node in nodes:
            if node.domain in ("", "ai.onnx"):
                yield node.op_type


def _is_function(op: str, opset: int) -> bool:
    if not opset or not defs.has(op, opset, ""):
        return False
    schema = defs.get_schema(op, opset, "")
    return bool(schema.has_function or schema.has_context_dependent_function)
