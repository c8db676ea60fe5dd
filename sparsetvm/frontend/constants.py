"""Initializers of an ONNX graph as numpy arrays: dense and sparse."""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import numpy_helper

from sparsetvm.errors import ModelError
from sparsetvm.frontend.external import packed_bytes
from sparsetvm.frontend.names import display_name

_MAX_SPARSE_ELEMENTS = 1 << 31
_NUMBERS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")


def tensor_array(tensor: onnx.TensorProto, what: str) -> np.ndarray:
    """The data of a tensor. Raises ModelError naming `what` when data and shape do not agree."""
    if tensor.data_location == onnx.TensorProto.EXTERNAL:  # `read` has loaded all; onnx would look for the file itself
        raise ModelError(f"{what} is outside the file")
    problem = _size_problem(tensor)
    if problem:
        raise ModelError(f"{what} {problem}")
    try:
        array = np.asarray(numpy_helper.to_array(tensor))
    except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError) as error:
        raise ModelError(f"{what} is damaged: {error}") from error
    if array.shape != tuple(tensor.dims):
        raise ModelError(f"{what} is damaged: data of shape {array.shape} for dimensions {tuple(tensor.dims)}")
    return array


def _size_problem(tensor: onnx.TensorProto) -> str:
    """Why the data cannot fill the shape, before anything is allocated for it; "" when nothing speaks against it."""
    if any(dim < 0 for dim in tensor.dims):
        return "has a negative dimension"
    if tensor.data_type == onnx.TensorProto.STRING:
        return ""
    try:
        needed = packed_bytes(tensor)
    except ValueError as error:
        return f"is damaged: {error}"
    if tensor.HasField("raw_data"):
        given = len(tensor.raw_data)
        return "" if given == needed else f"is damaged: {given} bytes where its shape needs {needed}"
    # Each number of a typed field stands for one element, or for up to four that are packed.
    numbers = sum(len(getattr(tensor, name)) for name in _NUMBERS)
    elements = math.prod(tensor.dims)
    return "" if elements <= 4 * numbers else f"is damaged: {numbers} numbers where its shape needs {elements}"


def sparse_array(sparse: onnx.SparseTensorProto, what: str) -> np.ndarray:
    """A sparse tensor written out in full. Indices are linear (nnz,) or coordinates (nnz, rank)."""
    values = tensor_array(sparse.values, what).ravel()
    indices = tensor_array(sparse.indices, what)
    dims = tuple(int(d) for d in sparse.dims)
    size = math.prod(dims)
    if any(d < 0 for d in dims) or size > _MAX_SPARSE_ELEMENTS:
        raise ModelError(f"{what} has impossible dimensions {dims}")
    if indices.dtype != np.int64 or indices.shape not in ((values.size,), (values.size, len(dims))):
        raise ModelError(f"{what} is damaged: {values.size} values with indices of shape {indices.shape}")
    if indices.ndim == 2:
        if np.any(indices < 0) or np.any(indices >= np.array(dims, np.int64)):
            raise ModelError(f"{what} is damaged: an index lies outside {dims}")
        indices = np.ravel_multi_index(tuple(indices.T), dims) if dims else np.zeros(values.size, np.int64)
    if np.any(indices < 0) or np.any(indices >= size):
        raise ModelError(f"{what} is damaged: an index lies outside {dims}")
    full = np.zeros(size, values.dtype)
    full[indices] = values
    return full.reshape(dims)


def take_initializers(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """Move all initializers out of `graph`, so that the protobuf that is left is small."""
    arrays: dict[str, np.ndarray] = {}
    for tensor in graph.initializer:
        arrays[tensor.name] = tensor_array(tensor, f"initializer '{display_name(tensor.name)}'")
    for sparse in graph.sparse_initializer:
        name = sparse.values.name
        arrays[name] = sparse_array(sparse, f"sparse initializer '{display_name(name)}'")
    del graph.initializer[:]
    del graph.sparse_initializer[:]
    return arrays
