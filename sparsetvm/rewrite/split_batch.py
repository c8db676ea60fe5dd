"""Run a large batch as several small ones, so that activations stay in the caches.

Before:  batch 16 through all nodes, chunks = 1
After:   batch 2 through all nodes, chunks = 8     (values have the shapes of one chunk)

At batch 16 the first stage of a ResNet-50 moves 50 MB per tensor: every layer is bound by memory, where an image or two
at a time live in L2 and L3. The weights are read once per chunk, which costs little: sparse weights are small and their
code is prefetched. (The depth-first order of streaming compilers, cut along the batch only.)
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from sparsetvm.core.graph import SPARSETVM_DOMAIN, Graph, Node
from sparsetvm.core.target import Target

# What the tensors of one node may take per thread: most of a last-level cache's share of one core.
_CHUNK_BYTES = 8 << 20
_ALIKE = ("Relu", "Gelu", "Tanh", "Sigmoid", "Identity", "Erf", "Cast")
_IMAGES = ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")
_BINARY = ("Add", "Sub", "Mul", "Div")


def split_batch(graph: Graph, target: Target) -> bool:
    """Cut the batch where every node treats its samples alike and one node's tensors exceed the caches."""
    batch = _common_batch(graph)
    if batch < 2 or not graph.nodes or not _independent(graph, batch):
        return False
    per_sample = max(_bytes_of(graph, node) for node in graph.nodes) // batch
    room = _CHUNK_BYTES * target.threads
    chunk = next((c for c in range(batch, 0, -1) if batch % c == 0 and c * per_sample <= room), 1)
    if chunk == batch:
        return False
    for node in graph.nodes:
        if node.is_op("Reshape"):
            shape = graph.values[node.outputs[0]].shape
            new = graph.add_constant(f"{node.name}.shape", np.array([chunk, *shape[1:]], np.int64))
            node.inputs = [node.inputs[0], new.name]
    for name in [*graph.inputs, *(out for node in graph.nodes for out in node.outputs if out)]:
        value = graph.values[name]
        value.shape = (chunk, *value.shape[1:])
    graph.chunks = batch // chunk
    return True


def _common_batch(graph: Graph) -> int:
    """First dimension of all inputs and outputs, 0 when they differ."""
    sizes = {(*graph.values[name].shape, 0)[0] for name in [*graph.inputs, *graph.outputs]}
    return sizes.pop() if len(sizes) == 1 else 0


def _bytes_of(graph: Graph, node: Node) -> int:
    values = [graph.values[name] for name in [*node.inputs, *node.outputs] if name]
    return 4 * sum(math.prod(value.shape) for value in values if not value.is_constant)


def _independent(graph: Graph, batch: int) -> bool:
    """True when every node computes each sample from that sample alone, along dimension 0 of all its values."""
    computed = {out for node in graph.nodes for out in node.outputs if out} | set(graph.inputs)
    if any(graph.values[name].shape[:1] != (batch,) or graph.values[name].is_constant for name in computed):
        return False
    return all(_rule(node)(graph, node) for node in graph.nodes)


def _rule(node: Node) -> Callable[[Graph, Node], bool]:
    if node.domain == SPARSETVM_DOMAIN:
        return _OWN.get(node.op, _never)
    return _ONNX.get(node.op, _never)


def _never(graph: Graph, node: Node) -> bool:
    return False


def _always(graph: Graph, node: Node) -> bool:
    return True


def _binary(graph: Graph, node: Node) -> bool:
    """Operands are batches of the output's rank, or constants that are the same for every sample."""
    rank = len(graph.values[node.outputs[0]].shape)
    for value in (graph.values[name] for name in node.inputs):
        shared = len(value.shape) < rank or value.shape[0] == 1
        if (value.is_constant and not shared) or (not value.is_constant and len(value.shape) != rank):
            return False
    return True


def _last_axis(graph: Graph, node: Node) -> bool:
    axis = int(node.attrs.get("axis", -1 if node.op == "LayerNormalization" or graph.opset >= 13 else 1))
    return axis % len(graph.values[node.inputs[0]].shape) != 0


def _flatten(graph: Graph, node: Node) -> bool:
    return int(node.attrs.get("axis", 1)) == 1


def _transpose(graph: Graph, node: Node) -> bool:
    return [int(axis) for axis in node.attrs.get("perm") or ()][:1] == [0]


def _product(graph: Graph, node: Node) -> bool:
    """Two stacks of matrices with a leading dimension of samples."""
    left, right = (graph.values[name] for name in node.inputs)
    return not right.is_constant and not left.is_constant and len(left.shape) == len(right.shape) >= 3


def _attention(graph: Graph, node: Node) -> bool:
    """Without a mask, or with a mask of one row per sample."""
    return len(node.inputs) < 4 or not graph.values[node.inputs[3]].is_constant


_OWN: dict[str, Callable[[Graph, Node], bool]] = {
    "conv2d": _always,
    "depthwise_conv2d": _always,
    "matmul": _always,
    "attention": _attention,
    "Silu": _always,
    "Clip": _always,
}
_ONNX: dict[str, Callable[[Graph, Node], bool]] = {
    **dict.fromkeys((*_ALIKE, *_IMAGES, "Reshape"), _always),
    **dict.fromkeys(_BINARY, _binary),
    "LayerNormalization": _last_axis,
    "Softmax": _last_axis,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "MatMul": _product,
}
