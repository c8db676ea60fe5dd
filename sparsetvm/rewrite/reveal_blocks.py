"""Put channels in an order in which layers show the blocks that their weights have.

Before:  matmul {weight (256, 64), 16x16 blocks among shuffled rows} -> Relu -> matmul {weight (64, 256)}
After:   matmul {the same rows, those of a block together} -> Relu -> matmul {its columns in the same order}

Kernels for tensor cores multiply whole blocks of neighbours, those of CPUs strips of neighbouring rows. The order of a
layer's outputs is free where all values that hold them are inside the graph and only work channel by channel: then it
moves into the columns of the layers that read them, at no cost.

One order has to serve all layers that make or read the channels. What a layer wants is a partition of them into blocks;
an order is kept when the work of the layers that show blocks grows. Not revealed are blocks with strays, and
permuted columns of convolutions with several taps, whose blocks are not runs of columns in any order of channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from sparsetvm.analysis.patterns import summarize
from sparsetvm.analysis.structure import find_structure
from sparsetvm.core.graph import Graph, Node
from sparsetvm.core.pattern import PatternSummary
from sparsetvm.rewrite.channel_groups import ChannelGroup, ChannelGroups, is_layer
from sparsetvm.rewrite.select_channels import select_channels, taps

# Blocks that kernels want, at least: the tiles that tensor cores multiply; strips of x86.pattern_data.
_LEAST_BLOCK = {"cuda": (8, 8), "cpu": (4, 1)}


def reveal_blocks(graph: Graph, device: str) -> bool:
    """Permute channels until no layer with hidden blocks can be helped; adds a note; returns whether any moved.

    device: "cpu" or "cuda", which want different blocks.
    """
    least = _LEAST_BLOCK[device]
    layers = [node for node in graph.nodes if is_layer(node)]
    patterns = {node.name: summarize(node.attrs["weight"]) for node in layers}
    if all(pattern.kind == "dense" or _useful(pattern, least) for pattern in patterns.values()):
        return False
    search = _Search(graph, ChannelGroups(graph), layers, least)
    shown = [node for node in layers if _useful(patterns[node.name], least)]
    orders = search.add({}, [wish for node in shown for wish in search.aligned(node, patterns[node.name])])
    hidden = [
        node
        for node in layers
        if patterns[node.name].kind in ("unstructured", "block") and not _useful(patterns[node.name], least)
    ]
    for node in sorted(hidden, key=search.work, reverse=True):
        orders = search.improved(orders, node) or orders
    revealed = sum(search.shows(node, orders) for node in hidden)
    if not revealed:
        return False
    chosen = {key: order.channels() for key, order in orders.items()}
    moved = {key: order for key, order in chosen.items() if (order != np.arange(order.size)).any()}
    select_channels(graph, search.channels, moved)
    graph.notes.append(
        f"reordered channels: {revealed} layer{'s' if revealed > 1 else ''} show blocks that were hidden"
    )
    return True


def _useful(pattern: PatternSummary, least: tuple[int, int]) -> bool:
    """Patterns that kernels are made for and that another order of channels could break."""
    return pattern.kind == "n:m" or (pattern.kind == "block" and _at_least(pattern.block, least))


def _at_least(block: tuple[int, int], least: tuple[int, int]) -> bool:
    return block[0] >= least[0] and block[1] >= least[1]


@dataclass(frozen=True)
class _Wish:
    """Channels of a group with equal numbers (count,) should be neighbours, blocks in the order of their numbers."""

    group: ChannelGroup
    block: np.ndarray
    size: int


@dataclass
class _Order:
    """An order of a group's channels that serves nested wishes: the largest blocks go first."""

    wishes: list[_Wish] = field(default_factory=list)

    def channels(self) -> np.ndarray:
        keys = [wish.block for wish in sorted(self.wishes, key=lambda wish: wish.size)]
        return np.lexsort(keys)


_Orders = dict[int, _Order]


class _Search:
    """What is known while orders are tried out."""

    def __init__(self, graph: Graph, channels: ChannelGroups, layers: list[Node], least: tuple[int, int]) -> None:
        self._graph = graph
        self.channels = channels
        self._layers = layers
        self._least = least

    def work(self, layer: Node) -> int:
        """Multiplications of the dense layer."""
        return math.prod(self._graph.values[layer.outputs[0]].shape) * int(layer.attrs["weight"].shape[1])

    def _group(self, name: str) -> ChannelGroup | None:
        group = self.channels.of.get(name)
        return None if group is None or group.pinned else group

    def aligned(self, layer: Node, pattern: PatternSummary) -> list[_Wish]:
        """What a layer that shows blocks wants: that they stay."""
        if pattern.kind != "block":
            return []
        m, k = layer.attrs["weight"].shape
        return self._wishes(layer, np.arange(m), np.arange(k), pattern.block) or []

    def _wishes(self, layer: Node, rows: np.ndarray, columns: np.ndarray, block: tuple[int, int]) -> list[_Wish] | None:
        """Wishes of a layer with blocks in weight[rows][:, columns]; None when its order cannot become that."""
        wishes = []
        for name, order, size in ((layer.outputs[0], rows, block[0]), (layer.inputs[0], columns, block[1])):
            group = self._group(name)
            if group is not None and order.size == group.count:
                numbers = np.empty(order.size, np.int64)
                numbers[order] = np.arange(order.size) // size
                wishes.append(_Wish(group, numbers, size))
            elif (order != np.arange(order.size)).any():
                return None
        return wishes

    def add(self, orders: _Orders, wishes: list[_Wish]) -> _Orders:
        """A copy of the orders with these wishes, too."""
        new = {key: _Order(list(order.wishes)) for key, order in orders.items()}
        for wish in wishes:
            new.setdefault(id(wish.group), _Order()).wishes.append(wish)
        return new

    def improved(self, orders: _Orders, layer: Node) -> _Orders | None:
        """The orders with what this layer wants, None when it hides no blocks or they cost others more."""
        if not self._groups_of(layer):
            return None
        found = find_structure(layer.attrs["weight"])
        if found.kind != "block" or not _at_least(found.block, self._least):
            return None
        m, k = layer.attrs["weight"].shape
        # Blocks at an offset: the lines before the first whole block go behind the last one.
        rows = np.roll(np.arange(m), -found.offset[0]) if found.row_permutation is None else found.row_permutation
        columns = (
            np.roll(np.arange(k), -found.offset[1]) if found.column_permutation is None else found.column_permutation
        )
        wishes = self._wishes(layer, rows, columns, found.block)
        if not wishes:
            return None
        tried = self.add(orders, wishes)
        groups = {id(wish.group) for wish in wishes}
        touched = [node for node in self._layers if groups & self._groups_of(node)]
        return tried if self._value(touched, tried) > self._value(touched, orders) else None

    def _groups_of(self, layer: Node) -> set[int]:
        return {id(group) for name in (layer.inputs[0], layer.outputs[0]) if (group := self._group(name)) is not None}

    def _value(self, layers: list[Node], orders: _Orders) -> int:
        """Work of those layers that show blocks."""
        return sum(self.work(layer) for layer in layers if self.shows(layer, orders))

    def shows(self, layer: Node, orders: _Orders) -> bool:
        """Whether a layer has a useful pattern in these orders."""
        return _useful(summarize(self._ordered(layer, orders)), self._least)

    def _ordered(self, layer: Node, orders: _Orders) -> np.ndarray:
        weight: np.ndarray = layer.attrs["weight"]
        makes, reads = self._group(layer.outputs[0]), self._group(layer.inputs[0])
        if makes is not None and id(makes) in orders:
            weight = weight[orders[id(makes)].channels()]
        if reads is not None and id(reads) in orders:
            each = taps(layer, reads)
            cubes = weight.reshape(weight.shape[0], reads.count, each)
            weight = cubes[:, orders[id(reads)].channels()].reshape(weight.shape)
        return weight
