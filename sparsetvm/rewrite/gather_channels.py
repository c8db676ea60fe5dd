"""Images that others are made of channel by channel: one operator that reads the channels where they were computed.

Before:  c = Concat(x, y, axis=1); s = Transpose(Reshape(c)); a, b = Split(Reshape(s), axis=1); n = affine_channels(a)
After:   b = gather_channels(x, y) {channels}; n = gather_channels(x, y) {channels, scale, shift, epilogue}

Concatenation, splits, slices and shuffles of channels move whole planes, so only what others read is made, and a
normalisation behind it is part of the same kernel. In ShuffleNet, the half of the channels that a block passes on is
never copied. `channels`: (channels, 2), the input and the channel in it of each.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sparsetvm.core.graph import SPARSETVM_DOMAIN, Graph, Node
from sparsetvm.rewrite.canonical.edit import Uses, integers, merged_origin

_MOST_PARTS = 256  # a kernel's parameters have 4 KB
_LAYERS = ("conv2d", "depthwise_conv2d", "affine_channels", "Silu", "HardSwish", "Clip")
_IN_PLANES = ("MaxPool", "AveragePool", "Relu", "Sigmoid", "Add", "Mul", "Resize")
_Channels = list[tuple[str, int]]  # of an image: the value that has each channel, and its number there


def gather_channels(graph: Graph, affine: bool = True) -> bool:
    """Replace every such image that another kind of node reads; returns whether anything changed.

    affine: whether a normalisation behind it becomes part of it, as kernels of GPUs have it.
    """
    moves = _Moves(graph, affine)
    changed = False
    for node in list(graph.nodes):
        for out in node.outputs:
            if out in moves.channels and moves.needed(out):
                changed |= _replace(graph, node, out, moves)
        changed |= affine and _fuse_affine(graph, node, moves)
    if changed:
        graph.prune_dead()
    return changed


class _Moves:
    """What the channels of each image that is only moved are. made: the nodes that took the place of moves."""

    def __init__(self, graph: Graph, affine: bool) -> None:
        self.graph = graph
        self.affine = affine
        self.uses = Uses(graph)
        self.consumers = graph.consumers()
        self.channels: dict[str, _Channels] = {}
        self.movers: dict[str, list[Node]] = {}  # the nodes behind each
        for node in graph.nodes:
            for out, channels, movers in self._moved(node):
                parts = {name for name, _ in channels}
                if len(parts) <= _MOST_PARTS and self._worth(parts):
                    self.channels[out] = channels
                    self.movers[out] = [*(m for name in movers[-1].inputs for m in self.movers.get(name, ())), *movers]

    def needed(self, name: str) -> bool:
        """True when something reads the image that does not itself move channels or reads them elsewhere."""
        return name in self.graph.outputs or any(not self._moving(user) for user in self.consumers[name])

    def _moving(self, user: Node) -> bool:
        if user.is_op("affine_channels", domain=SPARSETVM_DOMAIN):
            return self.affine
        if user.is_op("Reshape"):
            last = self._end_of_shuffle(user)
            return last is not None and last.outputs[0] in self.channels
        return not user.domain and any(out in self.channels for out in user.outputs)

    def _end_of_shuffle(self, first: Node) -> Node | None:
        middle = self.uses.sole_user(first.outputs[0])
        return self.uses.sole_user(middle.outputs[0]) if middle is not None and middle.is_op("Transpose") else None

    def _worth(self, parts: set[str]) -> bool:
        """True when at least half of the inputs are computed in planes."""
        producers = [self.uses.producer(name) for name in parts]
        near = sum(
            node is not None and (node.op in _LAYERS if node.domain == SPARSETVM_DOMAIN else node.op in _IN_PLANES)
            for node in producers
        )
        return 2 * near >= len(parts)

    def _of(self, name: str) -> _Channels:
        return self.channels.get(name) or [(name, channel) for channel in range(self.graph.values[name].shape[1])]

    def _image(self, name: str) -> bool:
        value = self.graph.values[name]
        return len(value.shape) == 4 and value.dtype == "float32" and not value.is_constant

    def _moved(self, node: Node) -> Iterator[tuple[str, _Channels, list[Node]]]:
        """(image, its channels, the nodes that move them) for each output of a node that moves channels."""
        if node.domain or not node.inputs or not node.inputs[0]:
            return
        if node.is_op("Concat") and int(node.attrs["axis"]) % 4 == 1 and all(map(self._image, node.inputs)):
            yield node.outputs[0], [channel for name in node.inputs for channel in self._of(name)], [node]
        elif node.is_op("Split", "Slice") and self._image(node.inputs[0]):
            for out, kept in self._kept(node):
                yield out, [self._of(node.inputs[0])[channel] for channel in kept], [node]
        elif node.is_op("Reshape") and self._image(node.outputs[0]):
            shuffle = self._shuffle(node)
            if shuffle is not None:
                first, middle, order = shuffle
                yield node.outputs[0], [self._of(first.inputs[0])[channel] for channel in order], [first, middle, node]

    def _kept(self, node: Node) -> Iterator[tuple[str, range]]:
        """The channels that each output of a Split or Slice has."""
        shape = self.graph.values[node.inputs[0]].shape
        if node.is_op("Split"):
            if int(node.attrs.get("axis", 0)) % 4 == 1:
                begin = 0
                for out in node.outputs:
                    size = self.graph.values[out].shape[1]
                    yield out, range(begin, begin + size)
                    begin += size
            return
        starts, axes, steps = (
            integers(self.graph, node, name, at) for name, at in (("starts", 1), ("axes", 3), ("steps", 4))
        )
        ends = integers(self.graph, node, "ends", 2)
        if starts and ends and axes and len(axes) == 1 and axes[0] % 4 == 1:
            kept = range(*slice(starts[0], ends[0], steps[0] if steps else 1).indices(shape[1]))
            yield node.outputs[0], kept

    def _shuffle(self, last: Node) -> tuple[Node, Node, list[int]] | None:
        """The Reshape and the Transpose before a Reshape that ends a shuffle of channels, and their order."""
        middle = self.uses.producer(last.inputs[0], "Transpose")
        first = self.uses.producer(middle.inputs[0], "Reshape") if middle is not None else None
        if middle is None or first is None or not self._image(first.inputs[0]):
            return None
        shape, split = (self.graph.values[name].shape for name in (first.inputs[0], first.outputs[0]))
        grouped = len(split) == 5 and (split[0], *split[3:]) == (shape[0], *shape[2:])
        same = self.graph.values[last.outputs[0]].shape == shape
        if not grouped or not same or list(middle.attrs.get("perm", ())) != [0, 2, 1, 3, 4]:
            return None
        return first, middle, np.arange(shape[1]).reshape(split[1:3]).T.reshape(-1).tolist()


def _replace(graph: Graph, node: Node, out: str, moves: _Moves) -> bool:
    """Compute an image by a node of its own; what computed it before keeps a value that nobody reads."""
    channels = moves.channels[out]
    first = channels[0][0]
    if out not in graph.outputs and channels == [(first, at) for at in range(graph.values[first].shape[1])]:
        for user in graph.nodes:  # a whole image: nothing moves
            user.inputs = [first if name == out else name for name in user.inputs]
        return True
    unread = graph.add_value(f"{out}.moved", graph.values[out].shape, graph.values[out].dtype)
    node.outputs = [unread.name if name == out else name for name in node.outputs]
    inputs = list(dict.fromkeys(name for name, _ in channels))
    made = Node(
        f"{node.name}.{out}", "gather_channels", inputs, [out], {"channels": _table(inputs, channels)},
        SPARSETVM_DOMAIN, merged_origin(moves.movers[out]),
    )  # fmt: skip
    graph.nodes.insert(graph.nodes.index(node) + 1, made)
    return True


def _table(inputs: list[str], channels: _Channels) -> np.ndarray:
    number = {name: at for at, name in enumerate(inputs)}
    return np.array([(number[name], channel) for name, channel in channels], np.int64)


def _fuse_affine(graph: Graph, node: Node, moves: _Moves) -> bool:
    """A normalisation reads the channels where they were computed."""
    if not node.is_op("affine_channels", domain=SPARSETVM_DOMAIN) or node.inputs[0] not in moves.channels:
        return False
    moved = node.inputs[0]
    channels = moves.channels[moved]
    node.inputs = list(dict.fromkeys(name for name, _ in channels))
    node.op, node.attrs["channels"] = "gather_channels", _table(node.inputs, channels)
    node.origin = merged_origin([node, *moves.movers[moved]])
    return True
