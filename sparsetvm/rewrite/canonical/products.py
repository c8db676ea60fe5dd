"""Products with constant weights (Conv, Gemm, MatMul): scale their weights, add to their bias, per output feature."""

from __future__ import annotations

import numpy as np

from sparsetvm.core.graph import Graph, Node

PRODUCTS = ("Conv", "Gemm", "MatMul")


def per_feature(graph: Graph, node: Node, constant: np.ndarray) -> np.ndarray | None:
    """A constant that is combined with the output of a product, as (m,) float64; None when it is not per feature."""
    shape = graph.values[node.outputs[0]].shape
    from_end = len(shape) - 1 if node.op == "Conv" else 1
    features = shape[-from_end]
    if constant.size == 1 and constant.ndim <= len(shape):
        return np.full(features, constant.reshape(-1)[0], np.float64)
    fits = from_end <= constant.ndim <= len(shape) and constant.size == features
    if not fits or constant.shape[-from_end] != features:
        return None
    vector: np.ndarray = constant.reshape(-1).astype(np.float64)
    return vector


def scale_features(graph: Graph, node: Node, factor: np.ndarray) -> bool:
    """Multiply output feature i by factor[i] (float64); False, and no change, when weight or bias is computed."""
    weight = graph.constant(node.inputs[1])
    bias_name = node.inputs[2] if len(node.inputs) > 2 else ""
    bias = graph.constant(bias_name)
    if weight is None or (bias_name and bias is None):
        return False
    if node.op == "MatMul" and weight.ndim != 2:
        return False
    axis = 0 if node.op == "Conv" or (node.op == "Gemm" and node.attrs.get("transB", 0)) else weight.ndim - 1
    along = [1] * weight.ndim
    along[axis] = factor.size
    node.inputs[1] = _constant(graph, node.inputs[1], weight * factor.reshape(along))
    if bias is not None:
        node.inputs[2] = _constant(graph, bias_name, bias * factor)
    return True


def add_to_bias(graph: Graph, node: Node, addend: np.ndarray) -> bool:
    """Add addend[i] (float64) to output feature i of a Conv or Gemm; False when it cannot be."""
    bias_name = node.inputs[2] if len(node.inputs) > 2 else ""
    bias = graph.constant(bias_name)
    if node.op not in ("Conv", "Gemm") or (bias_name and bias is None):
        return False
    if node.op == "Gemm":
        bias = None if bias is None else bias * np.float64(node.attrs.get("beta", 1.0))
        node.attrs["beta"] = 1.0
    total = addend if bias is None else bias + addend
    name = _constant(graph, bias_name or f"{node.name}.bias", total)
    node.inputs = [*node.inputs[:2], name]
    return True


def _constant(graph: Graph, stem: str, data: np.ndarray) -> str:
    return graph.add_constant(stem, np.ascontiguousarray(data, np.float32)).name
