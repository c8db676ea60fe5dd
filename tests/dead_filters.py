"""Networks with 30 % dead filters: 6 of 20 filters of every hidden layer are zero."""

from __future__ import annotations

import numpy as np
from models import ModelBuilder
from onnx import numpy_helper

WIDTH = 20
DEAD = [0, 3, 7, 8, 13, 19]


def kill(
    builder: ModelBuilder,
    channels: list[int],
    *,
    layer: int = -1,
    bias: float | None = None,
    columns: bool = False,
    rows: list[int] | None = None,
) -> bool:
    """Zero filters of a convolution or Gemm of `builder`, or with `columns` what its filters (of `rows`) read.

    layer: which one, in the order of the nodes. bias: what the dead filters' biases become; None leaves them. Channels
    that the weight lacks are left out. False when there is no such layer.
    """
    nodes = [node for node in builder.nodes if node.op_type in ("Conv", "Gemm", "MatMul")]
    if layer >= len(nodes):
        return False
    node = nodes[layer]
    tensors = {tensor.name: tensor for tensor in builder.initializers}
    weight = numpy_helper.to_array(tensors[node.input[1]]).copy()
    matrix = weight.T if node.op_type == "MatMul" else weight
    if columns:
        matrix[np.ix_(range(len(matrix)) if rows is None else rows, [c for c in channels if c < matrix.shape[1]])] = 0
    else:
        matrix[[c for c in channels if c < len(matrix)]] = 0
    tensors[node.input[1]].CopyFrom(numpy_helper.from_array(weight, node.input[1]))
    if bias is not None and len(node.input) > 2:
        vector = numpy_helper.to_array(tensors[node.input[2]]).copy()
        vector[channels] = bias
        tensors[node.input[2]].CopyFrom(numpy_helper.from_array(vector, node.input[2]))
    return True


def dead_conv_net() -> ModelBuilder:
    """Convolution, max pool, convolution with BatchNormalization, 1x1, mean, classifier. Biases live on where exact."""
    b = ModelBuilder("dead_conv")
    y = b.relu(b.conv(b.input("x", (1, 3, 10, 10)), 3, WIDTH))
    kill(b, DEAD, bias=-0.5)
    y = b.op("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2])
    y = b.relu(b.batch_norm(b.conv(y, WIDTH, WIDTH, bias=False), WIDTH))
    kill(b, DEAD)
    y = b.relu(b.conv(y, WIDTH, WIDTH, 1))
    kill(b, DEAD)
    b.gemm(b.reduce_mean(y, [2, 3], keepdims=0), WIDTH, 5, out="y")
    return b.output("y")


def dead_residual_net() -> ModelBuilder:
    """A stem and a block whose sum is dead in the same channels; what is inside the block is dead elsewhere."""
    b = ModelBuilder("dead_residual")
    x = b.relu(b.conv(b.input("x", (1, 3, 8, 8)), 3, WIDTH))
    kill(b, DEAD, bias=0.0)
    inside = b.relu(b.conv(x, WIDTH, WIDTH))
    kill(b, [channel - 1 for channel in DEAD], bias=-0.1)
    y = b.conv(inside, WIDTH, WIDTH)
    kill(b, DEAD, bias=0.3)
    b.gemm(b.op("Flatten", b.op("GlobalAveragePool", b.relu(b.op("Add", y, x)))), WIDTH, 5, out="y")
    return b.output("y")


def dead_depthwise_net() -> ModelBuilder:
    """Convolution, padded depthwise convolution, 1x1, each with ReLU6."""
    b = ModelBuilder("dead_depthwise")
    y = b.relu6(b.conv(b.input("x", (1, 3, 8, 8)), 3, WIDTH, stride=2))
    kill(b, DEAD, bias=-0.5)
    y = b.relu6(b.conv(y, WIDTH, WIDTH, groups=WIDTH))
    y = b.relu6(b.conv(y, WIDTH, WIDTH, 1))
    kill(b, DEAD)
    b.gemm(b.op("Flatten", b.op("GlobalAveragePool", y)), WIDTH, 5, out="y")
    return b.output("y")


def dead_mlp(*, activation: str = "relu", layer: str = "gemm") -> ModelBuilder:
    """Two hidden layers of Gemm, or MatMul and Add."""
    b = ModelBuilder("dead_mlp")
    make = getattr(b, layer)
    x = b.input("x", (3, 12))
    for k in (12, WIDTH):
        x = make(x, k, WIDTH)
        kill(b, DEAD)
        x = getattr(b, activation)(x)
    b.op("Identity", make(x, WIDTH, 5), out="y")
    return b.output("y")
