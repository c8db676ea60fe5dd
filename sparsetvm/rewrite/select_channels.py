"""Give the values of a channel group some of their channels, in some order: what removing and permuting have in common.

Rows and biases of the layers that make the channels, columns of those that read them, weights of depthwise
convolutions, constant operands and shapes change; what a removed constant channel would have added goes into biases.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np

from sparsetvm.core.graph import SPARSETVM_DOMAIN, Graph, Node
from sparsetvm.rewrite.channel_groups import ChannelGroup, ChannelGroups, bias_of, is_layer


def select_channels(graph: Graph, channels: ChannelGroups, chosen: Mapping[int, np.ndarray]) -> dict[str, int]:
    """Change the graph; returns layer name -> how many of its channels went.

    chosen: id of an unpinned group -> the channels that stay, in their new order. channels: of the graph as it is.
    """
    selection = _Selection(graph, channels, chosen)
    for node in graph.nodes:
        selection.constants_of(node)
    selection.shapes()
    return {node.name: count for node in graph.nodes if (count := selection.node(node))}


def taps(layer: Node, group: ChannelGroup) -> int:
    """Columns of the layer's weight per channel of the group that it reads."""
    return int(layer.attrs["weight"].shape[1]) // group.count


class _Selection:
    def __init__(self, graph: Graph, channels: ChannelGroups, chosen: Mapping[int, np.ndarray]) -> None:
        self.graph = graph
        self.channels = channels
        self.chosen = chosen

    def _chosen(self, name: str) -> np.ndarray | None:
        group = self.channels.of.get(name)
        return None if group is None else self.chosen.get(id(group))

    def shapes(self) -> None:
        """Give every value of the groups its new shape."""
        for name, group in self.channels.of.items():
            chosen = self._chosen(name)
            if chosen is not None:
                value, axis = self.graph.values[name], group.axes[name]
                shape = list(value.shape)
                shape[axis] = shape[axis] // group.count * chosen.size
                value.shape = tuple(shape)

    def constants_of(self, node: Node) -> None:
        """Change the constant operands of a node, by the shapes before."""
        out = node.outputs[0]
        chosen = self._chosen(out)
        if chosen is None or node.domain == SPARSETVM_DOMAIN or node.is_op("Reshape", "Squeeze", "Unsqueeze"):
            return
        group, shape = self.channels.of[out], self.graph.values[out].shape
        axis = group.axes[out]
        each = shape[axis] // group.count
        elements = (chosen[:, None] * each + np.arange(each)).ravel()
        for position, name in enumerate(node.inputs):
            data = self.graph.constant(name)
            place = axis - len(shape) + (0 if data is None else data.ndim)
            if data is not None and place >= 0 and data.shape[place] == shape[axis]:
                kept = np.take(data, elements, axis=place)
                node.inputs[position] = self.graph.add_constant(f"{name}.kept", kept).name

    def node(self, node: Node) -> int:
        """Change a node's weights, or what it says about shapes; returns how many channels of a layer went."""
        layer = is_layer(node)
        if layer:
            self._columns(node)
        chosen = self._chosen(node.outputs[0])
        if chosen is None:
            return 0
        if node.is_op("Reshape"):
            out = self.graph.values[node.outputs[0]]
            shape = self.graph.add_constant(f"{node.name}.shape", np.array(out.shape, np.int64))
            node.inputs = [node.inputs[0], shape.name]
        depthwise = node.is_op("depthwise_conv2d", domain=SPARSETVM_DOMAIN)
        if not layer and not depthwise:
            return 0
        before = int(node.attrs["weight"].shape[0])
        node.attrs["weight"] = node.attrs["weight"][chosen]
        if node.attrs["bias"] is not None:
            node.attrs["bias"] = node.attrs["bias"][chosen]
        if depthwise:
            node.attrs["conv"] = msgspec.structs.replace(
                node.attrs["conv"], in_channels=chosen.size, groups=chosen.size
            )
        return before - chosen.size

    def _columns(self, layer: Node) -> None:
        """Select the columns; the share of constant channels that go is added to the bias."""
        x = layer.inputs[0]
        chosen = self._chosen(x)
        if chosen is None:
            return
        weight: np.ndarray = layer.attrs["weight"]
        group = self.channels.of[x]
        cubes = weight.reshape(weight.shape[0], group.count, -1)
        gone = np.setdiff1d(np.arange(group.count), chosen)
        constants = np.nan_to_num(self.channels.constants[x][gone].astype(np.float64))
        share = cubes[:, gone].sum(axis=2, dtype=np.float64) @ constants
        if share.any():
            layer.attrs["bias"] = (bias_of(layer) + share).astype(np.float32)
            layer.attrs["epilogue"] = msgspec.structs.replace(layer.attrs["epilogue"], bias=True)
        layer.attrs["weight"] = np.ascontiguousarray(cubes[:, chosen].reshape(weight.shape[0], -1))
        if layer.attrs["conv"] is not None:
            layer.attrs["conv"] = msgspec.structs.replace(layer.attrs["conv"], in_channels=chosen.size)
