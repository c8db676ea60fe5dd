"""Initializers of an ONNX graph as numpy arrays: dense and sparse."""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import numpy_helper

from sparsetvm.errors import ModelError
from sparsetvm.frontend.names import display_name

_MAX_SPARSE_ELEMENTS = 1 << 31


def tensor_array(tensor: onnx.TensorProto, what: str) -> np.ndarray:
    """The data of a tensor. Raises ModelError naming `what` when data and shape do not agree."""
    if any(dim < 0 for dim in tensor.dims):
        raise ModelError(f"{what} has a negative dimension")
    try:
        array = np.asarray(numpy_helper.to_array(tensor))
    except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError) as error:
        raise ModelError(f"{what} is damaged: {error}") from error
    if array.shape != tuple(tensor.dims):
        raise ModelError(f"{what} is damaged: data of shape {array.shape} for dimensions {tuple(tensor.dims)}")
    return array


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
