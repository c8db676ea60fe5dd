"""Turn MatMul, Gemm and Conv with constant weights into layer nodes.

Before:  Gemm(x, W, b, transB=1)      MatMul(x, W)           Conv(x, W, b, strides=2)
After:   matmul(x) {weight (m, k)}    matmul(x) {weight}     conv2d(x) {weight (m, c*kh*kw), conv};
         depthwise_conv2d(x) when every channel is its own group
"""

from __future__ import annotations

import math

import numpy as np

from sparsetvm.core.graph import SPARSETVM_DOMAIN, Graph, Node
from sparsetvm.core.workload import ConvGeometry, Epilogue

LAYER_OPS = ("matmul", "conv2d")


def make_layers(graph: Graph) -> bool:
    """Replace every constant-weight product; returns whether anything changed."""
    changed = False
    nodes: list[Node] = []
    for node in graph.nodes:
        made = None
        if node.is_op("Conv"):
            made = _conv(graph, node)
        elif node.is_op("Gemm"):
            made = _gemm(graph, node)
        elif node.is_op("MatMul"):
            made = _matmul(graph, node)
        nodes.extend(made or [node])
        changed |= made is not None
    graph.nodes = nodes
    graph.prune_dead()
    return changed


def _layer(node: Node, op: str, x: str, weight: np.ndarray, bias: np.ndarray | None, conv: ConvGeometry | None) -> Node:
    attrs = {
        "weight": np.ascontiguousarray(weight, np.float32),
        "bias": None if bias is None else np.ascontiguousarray(bias, np.float32),
        "epilogue": Epilogue(bias=bias is not None),
        "conv": conv,
    }
    return Node(node.name, op, [x], list(node.outputs), attrs, SPARSETVM_DOMAIN, node.origin or (node.name,))


def _conv(graph: Graph, node: Node) -> list[Node] | None:
    weight = graph.constant(node.inputs[1])
    bias_name = node.inputs[2] if len(node.inputs) > 2 else ""
    bias = graph.constant(bias_name)
    if weight is None or weight.ndim != 4 or (bias_name and bias is None):
        return None
    _, channels, height, width = graph.values[node.inputs[0]].shape
    attrs = node.attrs
    pads = attrs.get("pads") or [0, 0, 0, 0]
    groups = int(attrs.get("group", 1))
    conv = ConvGeometry(
        channels,
        height,
        width,
        (int(weight.shape[2]), int(weight.shape[3])),
        _pair(attrs.get("strides")),
        (int(pads[0]), int(pads[1]), int(pads[2]), int(pads[3])),
        _pair(attrs.get("dilations")),
        groups,
    )
    whole_image = conv.kernel == (height, width) and not any(pads) and groups == 1
    if whole_image:
        return _conv_as_matmul(graph, node, weight, bias)
    depthwise = groups == channels and weight.shape[0] == channels and channels > 1
    op = "depthwise_conv2d" if depthwise else "conv2d"
    return [_layer(node, op, node.inputs[0], weight.reshape(weight.shape[0], -1), bias, conv)]


def _conv_as_matmul(graph: Graph, node: Node, weight: np.ndarray, bias: np.ndarray | None) -> list[Node]:
    """A kernel as large as its image is a product with the flattened image."""
    batch = graph.values[node.inputs[0]].shape[0]
    m, k = weight.shape[0], math.prod(weight.shape[1:])
    origin = node.origin or (node.name,)
    flat = graph.add_value(f"{node.inputs[0]}.flat", (batch, k), "float32")
    product = graph.add_value(f"{node.outputs[0]}.flat", (batch, m), "float32")
    shape_in = graph.add_constant(f"{flat.name}.shape", np.array([batch, k], np.int64))
    shape_out = graph.add_constant(f"{product.name}.shape", np.array([batch, m, 1, 1], np.int64))
    layer = _layer(node, "matmul", flat.name, weight.reshape(m, k), bias, None)
    layer.outputs = [product.name]
    return [
        Node(f"{node.name}.in", "Reshape", [node.inputs[0], shape_in.name], [flat.name], origin=origin),
        layer,
        Node(f"{node.name}.out", "Reshape", [product.name, shape_out.name], list(node.outputs), origin=origin),
    ]


def _pair(value: list[int] | None) -> tuple[int, int]:
    return (int(value[0]), int(value[1])) if value else (1, 1)


def _gemm(graph: Graph, node: Node) -> list[Node] | None:
    """alpha * A' B' + beta * C with a constant B, and C a constant per output feature (else an Add stays behind)."""
    weight = graph.constant(node.inputs[1])
    if weight is None or graph.values[node.inputs[0]].is_constant:
        return None
    attrs = node.attrs
    weight = weight if attrs.get("transB", 0) else weight.T
    alpha, beta = float(attrs.get("alpha", 1.0)), float(attrs.get("beta", 1.0))
    weight = weight if alpha == 1.0 else weight * np.float32(alpha)
    nodes: list[Node] = []
    x = node.inputs[0]
    if attrs.get("transA", 0):
        x = _transpose(graph, node, x, nodes)
    addend = node.inputs[2] if len(node.inputs) > 2 else ""
    bias, rest = _as_bias(graph.constant(addend), weight.shape[0], beta), ""
    if addend and bias is None:
        rest = addend
    layer = _layer(node, "matmul", x, weight, bias, None)
    nodes.append(layer)
    if rest:
        out = graph.values[node.outputs[0]]
        layer.outputs = [graph.add_value(f"{out.name}.product", out.shape, out.dtype).name]
        if beta != 1.0:
            scale = graph.add_constant(f"{node.name}.beta", np.array(beta, np.float32))
            scaled = graph.add_value(f"{rest}.scaled", graph.values[rest].shape, out.dtype)
            nodes.append(Node(f"{node.name}.beta", "Mul", [rest, scale.name], [scaled.name], origin=layer.origin))
            rest = scaled.name
        nodes.append(Node(f"{node.name}.add", "Add", [layer.outputs[0], rest], list(node.outputs), origin=layer.origin))
    return nodes


def _as_bias(addend: np.ndarray | None, features: int, beta: float) -> np.ndarray | None:
    """The addend as an (m,) vector, None when it is absent or differs between tokens."""
    if addend is None or (addend.ndim > 1 and math.prod(addend.shape[:-1]) != 1) or addend.size not in (1, features):
        return None
    scaled: np.ndarray = np.broadcast_to(addend.reshape(-1) * np.float32(beta), (features,)).astype(np.float32)
    return scaled


def _matmul(graph: Graph, node: Node) -> list[Node] | None:
    left, right = (graph.values[name] for name in node.inputs)
    if right.data is not None and right.data.ndim == 2 and left.data is None and len(left.shape) >= 2:
        return [_layer(node, "matmul", left.name, right.data.T, None, None)]
    if left.data is not None and left.data.ndim == 2 and len(right.shape) == 2:
        # W X = (X^T W^T)^T
        nodes: list[Node] = []
        x = _transpose(graph, node, right.name, nodes)
        out = graph.values[node.outputs[0]]
        product = graph.add_value(f"{out.name}.transposed", out.shape[::-1], out.dtype)
        layer = _layer(node, "matmul", x, left.data, None, None)
        layer.outputs = [product.name]
        nodes.append(layer)
        nodes.append(
            Node(
                f"{node.name}.out",
                "Transpose",
                [product.name],
                list(node.outputs),
                {"perm": [1, 0]},
                origin=layer.origin,
            )
        )
        return nodes
    return None


def _transpose(graph: Graph, node: Node, name: str, nodes: list[Node]) -> str:
    value = graph.values[name]
    swapped = graph.add_value(f"{name}.transposed", value.shape[::-1], value.dtype)
    nodes.append(Node(f"{node.name}.in", "Transpose", [name], [swapped.name], {"perm": [1, 0]}, origin=(node.name,)))
    return swapped.name
