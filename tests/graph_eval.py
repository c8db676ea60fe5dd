"""Evaluate a `Graph` in numpy: the reference that rewrites and kernels are compared with.

ONNX operators go through onnx's reference implementation one by one; the operators of the "sparsetvm" domain, and those
that the reference computes slowly or in float32 only, are written here. Layouts are ignored: values are logical.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from onnx import helper
from onnx.reference import ReferenceEvaluator
from scipy.special import erf, expit

from sparsetvm.core.graph import SPARSETVM_DOMAIN, Graph, Node
from sparsetvm.core.workload import ConvGeometry, Epilogue
from sparsetvm.frontend.to_onnx import node_proto, opset_of

Arrays = list[np.ndarray | None]


def evaluate(
    graph: Graph, inputs: dict[str, np.ndarray], *, dtype: type = np.float64, keep: bool = False
) -> dict[str, np.ndarray]:
    """Outputs by name (with `keep`: every value by name), computed in `dtype`."""
    values: dict[str, np.ndarray] = {}
    for name, value in graph.values.items():
        if value.data is not None:
            values[name] = _cast(value.data, dtype)
    for name in graph.inputs:
        if inputs[name].shape != graph.values[name].shape:
            raise ValueError(f"input '{name}' has shape {inputs[name].shape}, not {graph.values[name].shape}")
        values[name] = _cast(inputs[name], dtype)
    for node in graph.nodes:
        operands = [values[name] if name else None for name in node.inputs]
        results = evaluate_node(node, operands, graph)
        for name, result in zip(node.outputs, results, strict=False):
            if name and result.shape != graph.values[name].shape:
                raise ValueError(f"'{node.name}' gives {result.shape}, the graph says {graph.values[name].shape}")
            if name:
                values[name] = _cast(result, dtype)
    return values if keep else {name: values[name] for name in graph.outputs}


def _cast(array: np.ndarray, dtype: type) -> np.ndarray:
    return array.astype(dtype) if np.issubdtype(array.dtype, np.floating) else array


def evaluate_node(node: Node, operands: Arrays, graph: Graph) -> list[np.ndarray]:
    """The outputs of one node on the arrays of its inputs (None where absent)."""
    known = OPERATORS.get((node.domain, node.op))
    if known is not None:
        result = known(node, operands, graph)
        if result is not None:
            return [result]
    if node.domain:
        raise ValueError(f"'{node.name}': no evaluation of {node.domain}.{node.op}")
    opset = opset_of(node, graph.opset)
    arrays = {name: array for name, array in zip(node.inputs, operands, strict=True) if name}
    proto = helper.make_graph(
        [node_proto(node, opset)],
        "node",
        [helper.make_empty_tensor_value_info(name) for name in arrays],
        [helper.make_empty_tensor_value_info(name) for name in node.outputs if name],
    )
    model = helper.make_model(proto, opset_imports=[helper.make_opsetid("", opset)])
    results = iter(ReferenceEvaluator(model).run(None, arrays))
    return [np.asarray(next(results)) if name else np.zeros(0) for name in node.outputs]


# ---- operators of our own ----


def apply_epilogue(y: np.ndarray, epilogue: Epilogue, residual: np.ndarray | None = None) -> np.ndarray:
    """Residual and activation; the bias is added by the caller, along its axis."""
    if epilogue.residual:
        if residual is None:
            raise ValueError("the epilogue adds a residual, but the node has none")
        y = y + residual
    activations: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "none": lambda a: a,
        "relu": lambda a: np.maximum(a, 0),
        "clip": lambda a: np.clip(a, epilogue.low, epilogue.high),
        "gelu": gelu,
        "gelu_tanh": gelu_tanh,
        "sigmoid": expit,
        "silu": lambda a: a * expit(a),
        "hard_swish": hard_swish,
    }
    return activations[epilogue.activation](y)


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + erf(x / math.sqrt(2)))


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def hard_swish(x: np.ndarray) -> np.ndarray:
    return x * np.clip(x / 6 + 0.5, 0, 1)


def conv2d(x: np.ndarray, weight: np.ndarray, conv: ConvGeometry) -> np.ndarray:
    """x (batch, channels, height, width), weight (m, channels / groups * kh * kw) -> (batch, m, oh, ow)."""
    top, left, bottom, right = conv.pads
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    window = [d * (k - 1) + 1 for d, k in zip(conv.dilation, conv.kernel, strict=True)]
    patches = np.lib.stride_tricks.sliding_window_view(padded, window, axis=(2, 3))
    patches = patches[:, :, :: conv.stride[0], :: conv.stride[1], :: conv.dilation[0], :: conv.dilation[1]]
    batch, channels, height, width, kh, kw = patches.shape
    depth = channels // conv.groups
    columns = patches.reshape(batch, conv.groups, depth, height, width, kh, kw).transpose(0, 1, 2, 5, 6, 3, 4)
    columns = columns.reshape(batch, conv.groups, depth * kh * kw, height * width)
    weights = weight.astype(x.dtype).reshape(conv.groups, -1, depth * kh * kw)
    return np.matmul(weights, columns).reshape(batch, weight.shape[0], height, width)


def _layer_matmul(node: Node, operands: Arrays, graph: Graph) -> np.ndarray:
    x = operands[0]
    assert x is not None
    y = x @ node.attrs["weight"].astype(x.dtype).T
    if node.attrs["bias"] is not None:
        y = y + node.attrs["bias"]
    return apply_epilogue(y, node.attrs["epilogue"], operands[1] if len(operands) > 1 else None)


def _layer_conv2d(node: Node, operands: Arrays, graph: Graph) -> np.ndarray:
    x = operands[0]
    assert x is not None
    y = conv2d(x, node.attrs["weight"], node.attrs["conv"])
    if node.attrs["bias"] is not None:
        y = y + node.attrs["bias"][:, None, None]
    return apply_epilogue(y, node.attrs["epilogue"], operands[1] if len(operands) > 1 else None)


def _affine_channels(node: Node, operands: Arrays, graph: Graph) -> np.ndarray:
    x = operands[0]
    assert x is not None
    scale, shift = (node.attrs[name][:, None, None] for name in ("scale", "shift"))
    return apply_epilogue(x * scale + shift, node.attrs["epilogue"])


def _gather_channels(node: Node, operands: Arrays, graph: Graph) -> np.ndarray:
    images = [operand for operand in operands if operand is not None]
    y = np.stack([images[part][:, channel] for part, channel in node.attrs["channels"]], 1)
    if "epilogue" not in node.attrs:
        return y
    scale, shift = (node.attrs[name][:, None, None] for name in ("scale", "shift"))
    return apply_epilogue(y * scale + shift, node.attrs["epilogue"])


# ---- operators of ONNX that the reference computes slowly or in float32 ----


def _onnx_conv(node: Node, operands: Arrays, graph: Graph) -> np.ndarray | None:
    x, weight = operands[0], operands[1]
    assert x is not None
    assert weight is not None
    if x.ndim != 4 or node.attrs.get("auto_pad", "NOTSET") != "NOTSET":
        return None
    geometry = ConvGeometry(
        x.shape[1],
        x.shape[2],
        x.shape[3],
        (weight.shape[2], weight.shape[3]),
        tuple(node.attrs.get("strides", (1, 1))),
        tuple(node.attrs.get("pads", (0, 0, 0, 0))),
        tuple(node.attrs.get("dilations", (1, 1))),
        node.attrs.get("group", 1),
    )
    y = conv2d(x, weight.reshape(weight.shape[0], -1), geometry)
    bias = operands[2] if len(operands) > 2 else None
    return y if bias is None else y + bias[:, None, None]


def _max_pool(node: Node, operands: Arrays, graph: Graph) -> np.ndarray | None:
    x, attrs = operands[0], node.attrs
    assert x is not None
    plain = not attrs.get("ceil_mode", 0) and attrs.get("auto_pad", "NOTSET") == "NOTSET"
    if x.ndim != 4 or not plain or any(node.outputs[1:]) or any(d != 1 for d in attrs.get("dilations", [1])):
        return None
    top, left, bottom, right = attrs.get("pads", (0, 0, 0, 0))
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, attrs["kernel_shape"], axis=(2, 3))
    strides = attrs.get("strides", (1, 1))
    return windows[:, :, :: strides[0], :: strides[1]].max(axis=(4, 5))


def _layer_normalization(node: Node, operands: Arrays, graph: Graph) -> np.ndarray:
    x, gamma = operands[0], operands[1]
    assert x is not None
    axes = tuple(range(node.attrs.get("axis", -1) % x.ndim, x.ndim))
    centred = x - x.mean(axis=axes, keepdims=True)
    y = centred / np.sqrt(np.square(centred).mean(axis=axes, keepdims=True) + node.attrs.get("epsilon", 1e-5)) * gamma
    beta = operands[2] if len(operands) > 2 else None
    return y if beta is None else y + beta


def _rms_normalization(node: Node, operands: Arrays, graph: Graph) -> np.ndarray:
    x, gamma = operands
    assert x is not None
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + node.attrs["epsilon"]) * gamma


def _masked_softmax(node: Node, operands: Arrays, graph: Graph) -> np.ndarray:
    x = operands[0]
    assert x is not None
    scores = x * node.attrs["scale"] + (operands[1] if len(operands) > 1 else 0.0)
    terms = np.exp(scores - scores.max(-1, keepdims=True))
    return terms / terms.sum(-1, keepdims=True)


def _attention(node: Node, operands: Arrays, graph: Graph) -> np.ndarray:
    q, k, v = (array for array in operands[:3] if array is not None)
    batch, tokens, features = q.shape
    heads = node.attrs["heads"]
    q, k, v = (array.reshape(batch, tokens, heads, -1).transpose(0, 2, 1, 3) for array in (q, k, v))
    scores = q @ k.swapaxes(2, 3) * node.attrs["scale"] + (operands[3] if len(operands) > 3 else 0.0)
    terms = np.exp(scores - scores.max(-1, keepdims=True))
    return (terms / terms.sum(-1, keepdims=True) @ v).transpose(0, 2, 1, 3).reshape(q.shape[0], tokens, features)


def _rotary(node: Node, operands: Arrays, graph: Graph) -> np.ndarray:
    x = operands[0]
    assert x is not None
    tokens, depth = node.attrs["cosines"].shape
    heads = x.reshape(x.shape[0], tokens, -1, depth)
    turned = np.concatenate([-heads[..., depth // 2 :], heads[..., : depth // 2]], -1)
    cosines, sines = (node.attrs[name][:, None] for name in ("cosines", "sines"))
    return (heads * cosines + turned * sines).reshape(x.shape)


def _batch_normalization(node: Node, operands: Arrays, graph: Graph) -> np.ndarray | None:
    # The reference runs opsets below 14 in training mode.
    if node.attrs.get("training_mode", 0) or any(node.outputs[1:]):
        return None
    x = operands[0]
    assert x is not None
    shape = (-1, *[1] * (x.ndim - 2))
    gamma, beta, mean, variance = (np.reshape(a, shape) for a in operands[1:5] if a is not None)
    return (x - mean) / np.sqrt(variance + node.attrs.get("epsilon", 1e-5)) * gamma + beta


def _unary(function: Callable[[np.ndarray], np.ndarray]) -> Operator:
    return lambda node, operands, graph: function(operands[0])


Operator = Callable[[Node, Arrays, Graph], "np.ndarray | None"]

OPERATORS: dict[tuple[str, str], Operator] = {
    (SPARSETVM_DOMAIN, "matmul"): _layer_matmul,
    (SPARSETVM_DOMAIN, "conv2d"): _layer_conv2d,
    (SPARSETVM_DOMAIN, "depthwise_conv2d"): _layer_conv2d,
    (SPARSETVM_DOMAIN, "Clip"): lambda n, operands, g: np.clip(operands[0], n.attrs["low"], n.attrs["high"]),
    (SPARSETVM_DOMAIN, "affine_channels"): _affine_channels,
    (SPARSETVM_DOMAIN, "gather_channels"): _gather_channels,
    (SPARSETVM_DOMAIN, "attention"): _attention,
    (SPARSETVM_DOMAIN, "rotary"): _rotary,
    (SPARSETVM_DOMAIN, "Silu"): _unary(lambda x: x * expit(x)),
    (SPARSETVM_DOMAIN, "HardSwish"): _unary(hard_swish),
    (SPARSETVM_DOMAIN, "masked_softmax"): _masked_softmax,
    ("", "Gelu"): lambda n, a, g: (gelu_tanh if n.attrs.get("approximate") == "tanh" else gelu)(a[0]),
    ("", "Erf"): _unary(erf),
    ("", "Sigmoid"): _unary(expit),
    ("", "BatchNormalization"): _batch_normalization,
    ("", "Conv"): _onnx_conv,
    ("", "MaxPool"): _max_pool,
    ("", "LayerNormalization"): _layer_normalization,
    ("", "RMSNormalization"): _rms_normalization,
}
