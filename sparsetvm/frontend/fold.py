"""Constant folding: run a node on its constant inputs through onnx's reference implementation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper

from sparsetvm.core.graph import Value
from sparsetvm.errors import ModelError
from sparsetvm.frontend.names import words
from sparsetvm.frontend.to_onnx import value_info

_MAX_FOLDED_BYTES = 64 << 20
_MAX_GROWTH = 4
# The reference resizes along one axis after the other, position by position: seconds for a million of them.
_ALONG_AXES, _MAX_AXIS = ("Resize", "Upsample"), 1 << 16

# Random numbers must not be frozen; the reference runs old BatchNormalizations in training mode; the others take time
# that no size limit bounds (a regular expression, pixels one by one), or have no reference for old opsets.
_NEVER = words(
    """
    BatchNormalization Bernoulli Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike
    Conv ConvTranspose DeformConv GRU LSTM RNN If Loop Scan MaxPool AveragePool LpPool Einsum GridSample RoiAlign
    GlobalLpPool MaxRoiPool Scatter Softmax LogSoftmax Hardmax
    Col2Im ConvInteger ImageDecoder MaxUnpool NonMaxSuppression QLinearConv RegexFullMatch StringConcat
    StringNormalizer StringSplit TfIdfVectorizer
    """
)
# The first opset with a reference implementation, where older ones mean the same.
_REFERENCE_FROM = {"DequantizeLinear": 19}


def fold_node(
    node: onnx.NodeProto, inputs: Mapping[str, Value], outputs: Sequence[Value], opset: int, layer: str
) -> list[np.ndarray] | None:
    """The outputs of a node whose inputs are all constant; None when it is not to be folded.

    A result of more than 64 MB that is also more than 4 times its inputs is left for the run, and so are long axes that
    are resized.
    """
    arrays = {name: inputs[name].data for name in node.input if name}
    if node.op_type in _NEVER or any(array is None for array in arrays.values()):
        return None
    read = sum(array.nbytes for array in arrays.values() if array is not None)
    # An axis of size zero makes the result small, not what is computed on the way.
    shapes = [[max(size, 1) for size in value.shape] for value in outputs]
    written = sum(
        math.prod(shape) * np.dtype(value.dtype).itemsize for shape, value in zip(shapes, outputs, strict=True)
    )
    if node.op_type in _ALONG_AXES and max(map(max, filter(None, shapes)), default=0) > _MAX_AXIS:
        return None
    if written > max(_MAX_FOLDED_BYTES, _MAX_GROWTH * read):
        return None
    if node.op_type == "GatherElements":
        data, indices = (np.asarray(arrays[name]) for name in node.input)
        return [_gather_elements(node, data, indices, layer)]
    from onnx.reference import ReferenceEvaluator  # not at the top: few models need it, and it takes a while

    opset = max(opset, _REFERENCE_FROM.get(node.op_type, 0))
    graph = helper.make_graph(
        [node], "fold", [value_info(inputs[name]) for name in arrays], [value_info(value) for value in outputs]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    try:
        with np.errstate(all="ignore"):
            results = ReferenceEvaluator(model).run(None, arrays)
    except MemoryError:
        raise
    # The reference implementation raises whatever numpy raises on a malformed node.
    except Exception as error:
        raise ModelError(f"{node.op_type} of constants cannot be computed: {error}", layer=layer) from error
    folded = [np.asarray(r).astype(np.dtype(v.dtype), copy=False) for r, v in zip(results, outputs, strict=True)]
    for array, value in zip(folded, outputs, strict=True):
        if array.shape != value.shape:
            raise ModelError(f"{node.op_type} of constants gives shape {array.shape}, not {value.shape}", layer=layer)
    return folded


def _gather_elements(node: onnx.NodeProto, data: np.ndarray, indices: np.ndarray, layer: str) -> np.ndarray:
    """GatherElements, which the reference implementation (1.19) gets wrong for more than 32 choices of one row."""
    axis = next((int(attribute.i) for attribute in node.attribute if attribute.name == "axis"), 0) % max(data.ndim, 1)
    if data.ndim != indices.ndim or not data.ndim or indices.dtype.kind != "i":
        what = f"GatherElements of {data.ndim} axes with indices of {indices.ndim} and of type {indices.dtype}"
        raise ModelError(what, layer=layer)
    # The indices may be shorter than the data along the other axes.
    part = data[tuple(slice(None) if at == axis else slice(size) for at, size in enumerate(indices.shape))]
    size = data.shape[axis]
    if np.any((indices < -size) | (indices >= size)) or any(
        have < want for at, (have, want) in enumerate(zip(part.shape, indices.shape, strict=True)) if at != axis
    ):
        raise ModelError(f"GatherElements of {list(data.shape)} with indices beyond it", layer=layer)
    return np.take_along_axis(part, indices, axis)
