"""Run a large batch as several small ones, so that activations stay in the caches.

Before:  batch 16 through all nodes, chunks = 1
After:   batch 1 through the first nodes, chunks = 16;  gather 4;  batch 4 through the rest, which runs 4 times
         (values have the shapes of one chunk)

At batch 16 the first stage of a ResNet-50 moves 50 MB per tensor: every layer is bound by memory, where an image or two
at a time live in L2 and L3. Weights and code are read once per chunk. That is cheap for the first layers, which have
large images and small weights. The last ones have it the other way round: where the weights from some node on outweigh
the tensors, and several chunks fit at once, their results are gathered and go on together. (The depth-first order of
streaming compilers, cut along the batch only.)

Chunks of as many images as a vector has lanes are worth more where images are small: their layers have one image per
lane (lane_images.py), and no lane without a pixel.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from sparsetvm.analysis.cpu_core import core_of
from sparsetvm.core.graph import SPARSETVM_DOMAIN, Graph, Node
from sparsetvm.core.target import Target
from sparsetvm.rewrite.lane_images import empty_lanes, pays, work_of_nodes

# What the tensors of one node may take per thread: most of a last-level cache's share of one core.
_CHUNK_BYTES = 8 << 20
# The same where one image per lane makes up for it: all of a last-level cache, of which a layer's tensors are most.
_LANES_BYTES = 32 << 20
# Bytes that come from there in a clock.
_BYTES_PER_CLOCK = 7
# Values that are gathered at one place: what a block goes on from, with what it adds at its end.
_MOST_IMAGES = 2
# Of code and weights of a sparse layer, and of a weight of a dense one.
_BYTES_PER_NNZ, _BYTES_PER_WEIGHT = 12, 4
# What a byte of a tensor costs that lies in L3 instead of L2, beside a byte of code or weights from L3 or memory.
_FURTHER = 0.5
# The same where one image per lane makes all channels of a pixel one stretch of memory, which prefetchers follow.
_FURTHER_IN_LANES = 0.25
_ALIKE = ("Relu", "Gelu", "Tanh", "Sigmoid", "Identity", "Erf", "Cast")
_IMAGES = ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")
_BINARY = ("Add", "Sub", "Mul", "Div")


def split_batch(graph: Graph, target: Target) -> bool:
    """Cut the batch where every node treats its samples alike and one node's tensors exceed the caches."""
    batch = _common_batch(graph)
    if batch < 2 or not graph.nodes or not _independent(graph, batch):
        return False
    largest = [_bytes_of(graph, node) // batch for node in graph.nodes]
    room = _CHUNK_BYTES * target.threads
    chunk = _fitting(batch, max(largest), room)
    lanes = _Lanes(graph, target, largest, batch)
    again = sum(map(_weight_bytes, graph.nodes)) * (1 / lanes.size - 1 / chunk)
    if chunk > lanes.size and lanes.fit(0, 1) and lanes.gain(0, chunk, lanes.size) > again:
        chunk = lanes.size
    if chunk == batch:
        return False
    cuts = _cuts(graph, largest, batch, chunk, room, lanes)
    for name in graph.inputs:
        _resize(graph, name, chunk)
    graph.chunks, size, nodes = batch // chunk, chunk, list[Node]()
    for at, node in enumerate(graph.nodes):
        if at in cuts:
            nodes += [_gather(graph, name, graph.nodes[at:], cuts[at][1] // size) for name in cuts[at][0]]
            size = cuts[at][1]
        if node.is_op("Reshape"):
            shape = graph.values[node.outputs[0]].shape
            new = graph.add_constant(f"{node.name}.shape", np.array([size, *shape[1:]], np.int64))
            node.inputs = [node.inputs[0], new.name]
        for name in filter(None, node.outputs):
            _resize(graph, name, size)
        nodes.append(node)
    graph.nodes = nodes
    return True


def _fitting(batch: int, per_sample: int, room: int, multiple_of: int = 1) -> int:
    """The largest divisor of the batch that is a multiple of another one and whose samples fit."""
    sizes = range(batch, multiple_of, -1)
    return next((c for c in sizes if batch % c == 0 == c % multiple_of and c * per_sample <= room), multiple_of)


class _Lanes:
    """What one image per lane is worth."""

    def __init__(self, graph: Graph, target: Target, largest: list[int], batch: int) -> None:
        self.size, self._largest = target.lanes, largest
        self._room, self._divides = _LANES_BYTES * target.threads, batch % target.lanes == 0
        self._work, self._empty = work_of_nodes(graph), empty_lanes(graph, target)
        self._bytes = _BYTES_PER_CLOCK / (2 * target.lanes * core_of(target).fma)

    def fit(self, at: int, chunk: int) -> bool:
        """Whether the nodes from `at` on will have images in lanes if they run on as many, after chunks of `chunk`."""
        small = self.size * max(self._largest[at:]) <= self._room
        return small and self._divides and self.size % chunk == 0 and pays(sum(self._empty[at:]), sum(self._work[at:]))

    def gain(self, at: int, before: int, after: int) -> float:
        """Bytes per sample that could come from afar in the time that chunks of another size save from `at` on."""
        return ((after == self.size) - (before == self.size)) * self._bytes * sum(self._empty[at:])


def _cuts(
    graph: Graph, largest: list[int], batch: int, chunk: int, room: int, lanes: _Lanes
) -> dict[int, tuple[tuple[str, ...], int]]:
    """Where chunks grow: index of the first node of larger ones -> (the values that are gathered, their size).

    largest: bytes of each node's tensors per sample. A sample saves its part of the traffic of weights, and pays with
    tensors that lie in a cache further away, and with the copy.
    """
    images, cuts = _images(graph), dict[int, tuple[tuple[str, ...], int]]()
    weights = [_weight_bytes(node) for node in graph.nodes]
    while True:
        found = []
        for at, names in images.items():
            sizes = {_fitting(batch, max(largest[at:]), room, chunk)} if len(names) == 1 else set[int]()
            if lanes.fit(at, chunk):
                sizes.add(lanes.size)
            for size in sizes:
                saved = sum(weights[at:]) * (1 / chunk - 1 / size) + lanes.gain(at, chunk, size)
                further = _FURTHER_IN_LANES if size == lanes.size and lanes.fit(at, chunk) else _FURTHER
                paid = further * sum(largest[at:]) + 2 * sum(_bytes(graph, name) for name in names) // batch
                found.append((saved - paid, at, names, size))
        gain, at, names, size = max(found, default=(0, 0, (), chunk))
        if gain <= 0:
            return cuts
        cuts[at], chunk = (names, size), size
        images = {later: names for later, names in images.items() if later > at}


def _images(graph: Graph) -> dict[int, tuple[str, ...]]:
    """Index of a node -> the values, one or two images, that are all that it and later nodes read of earlier ones."""
    last_use = {name: at for at, node in enumerate(graph.nodes) for name in node.inputs}
    last_use |= dict.fromkeys(graph.outputs, len(graph.nodes))
    alive = {name: None for name in graph.inputs if name in last_use}
    images = {}
    for at, node in enumerate(graph.nodes):
        alive = {name: None for name in alive if last_use[name] >= at}
        plain = any(len(graph.values[name].shape) != 4 or name in (*graph.inputs, *graph.outputs) for name in alive)
        if 1 <= len(alive) <= _MOST_IMAGES and not plain:
            images[at] = tuple(alive)
        alive |= {name: None for name in node.outputs if name in last_use}
    return images


def _weight_bytes(node: Node) -> int:
    weight = node.attrs.get("weight")
    if weight is None:
        return 0
    return min(_BYTES_PER_NNZ * int(np.count_nonzero(weight)), _BYTES_PER_WEIGHT * int(weight.size))


def _bytes(graph: Graph, name: str) -> int:
    return 4 * math.prod(graph.values[name].shape)


def _gather(graph: Graph, name: str, readers: list[Node], count: int) -> Node:
    """A node that gathers `count` runs of a value, for the nodes behind it."""
    value = graph.values[name]
    out = graph.add_value(f"{name}.gathered", (count * value.shape[0], *value.shape[1:]), value.dtype)
    for node in readers:
        node.inputs = [out.name if read == name else read for read in node.inputs]
    return Node(out.name, "gather", [name], [out.name], {"count": count}, SPARSETVM_DOMAIN)


def _resize(graph: Graph, name: str, size: int) -> None:
    graph.values[name].shape = (size, *graph.values[name].shape[1:])


def _common_batch(graph: Graph) -> int:
    """First dimension of all inputs and outputs, 0 when they differ."""
    sizes = {(*graph.values[name].shape, 0)[0] for name in [*graph.inputs, *graph.outputs]}
    return sizes.pop() if len(sizes) == 1 else 0


def _bytes_of(graph: Graph, node: Node) -> int:
    names = [name for name in [*node.inputs, *node.outputs] if name]
    return sum(_bytes(graph, name) for name in names if not graph.values[name].is_constant)


def _independent(graph: Graph, batch: int) -> bool:
    """True when every node computes each sample from that sample alone, along dimension 0 of all its values."""
    computed = {out for node in graph.nodes for out in node.outputs if out} | {*graph.inputs, *graph.outputs}
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
    axis = int(node.attrs.get("axis", -1 if node.op != "Softmax" or graph.opset >= 13 else 1))
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
    "pooled_conv2d": _always,
    "matmul": _always,
    "attention": _attention,
    "masked_softmax": _binary,
    "Silu": _always,
    "HardSwish": _always,
    "Clip": _always,
}
_ONNX: dict[str, Callable[[Graph, Node], bool]] = {
    **dict.fromkeys((*_ALIKE, *_IMAGES, "Reshape"), _always),
    **dict.fromkeys(_BINARY, _binary),
    "LayerNormalization": _last_axis,
    "RMSNormalization": _last_axis,
    "Softmax": _last_axis,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "MatMul": _product,
}
