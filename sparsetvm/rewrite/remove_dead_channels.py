"""Remove channels that are constant, and channels that nobody reads.

Before:  conv2d {weight (64, 288), 20 rows zero} -> Relu -> conv2d {weight (128, 576)}
After:   conv2d {weight (44, 288)} -> Relu -> conv2d {weight (128, 396), bias + weights * constant channels}

Pruning whole filters, or single weights until none of a filter are left, leaves rows of zeros: a channel that is the
same at all places, whatever the input. Its share of the next layer is a bias. A channel whose weights in all layers
behind it are zero goes as well, whatever makes it. Removing either may empty other rows and columns, so this repeats.

At the borders of a padded convolution a constant meets fewer weights: such a channel goes only when it is zero. Where
few channels are dead, all stay.
"""

from __future__ import annotations

import msgspec
import numpy as np

from sparsetvm.core.graph import SPARSETVM_DOMAIN, Graph, Node
from sparsetvm.core.workload import ConvGeometry
from sparsetvm.rewrite.channel_groups import ChannelGroup, ChannelGroups, bias_of, is_layer

# A group keeps two channels: with one, a Squeeze might take their dimension and a depthwise convolution be no such.
_FEWEST = 2
# Share of a group's channels that must be dead. One of 512 saves nothing, and leaves a size that suits kernels less and
# that no tuning record knows.
_WORTH = 1 / 16


def remove_dead_channels(graph: Graph) -> bool:
    """Cut layers until every channel varies and is read; adds a note; returns whether anything changed."""
    removed: dict[str, int] = {}
    while _remove_once(graph, removed):
        graph.prune_dead()
    if removed:
        channels, layers = sum(removed.values()), len(removed)
        graph.notes.append(
            f"removed {channels} dead channel{'s' if channels > 1 else ''} of {layers} layer{'s' if layers > 1 else ''}"
        )
    return bool(removed)


def _remove_once(graph: Graph, removed: dict[str, int]) -> bool:
    """Remove what is dead as the graph stands. removed: layer name -> how many of its channels went, added to."""
    channels = ChannelGroups(graph)
    keeps = {id(group): _alive(graph, channels, group) for group in channels.unique() if not group.pinned}
    cut = _Cut(graph, channels, {key: keep for key, keep in keeps.items() if not keep.all()})
    if not cut.keeps:
        return False
    for node in graph.nodes:
        cut.constants_of(node)
    cut.shapes()
    for node in graph.nodes:
        count = cut.node(node)
        if count:
            removed[node.name] = removed.get(node.name, 0) + count
    return True


def _alive(graph: Graph, channels: ChannelGroups, group: ChannelGroup) -> np.ndarray:
    """(count,) bool: the channels that some layer needs."""
    needed = np.zeros(group.count, bool)
    for node in graph.nodes:
        if is_layer(node) and channels.of.get(node.inputs[0]) is group:
            read = node.attrs["weight"].reshape(-1, group.count, _taps(node, group)).any(axis=(0, 2))
            constants = channels.constants[node.inputs[0]]
            folds = constants == 0 if _padded(node) else np.isfinite(constants)
            needed |= read & ~folds
    needed[np.flatnonzero(~needed)[: max(0, _FEWEST - int(needed.sum()))]] = True
    return needed if np.count_nonzero(~needed) >= _WORTH * group.count else np.ones(group.count, bool)


def _taps(layer: Node, group: ChannelGroup) -> int:
    """Columns of the layer's weight per channel."""
    return int(layer.attrs["weight"].shape[1]) // group.count


def _padded(layer: Node) -> bool:
    conv: ConvGeometry | None = layer.attrs["conv"]
    return conv is not None and any(conv.pads)


class _Cut:
    """Takes channels out of values and nodes. keeps: id of a group that loses some -> (count,) bool, what stays."""

    def __init__(self, graph: Graph, channels: ChannelGroups, keeps: dict[int, np.ndarray]) -> None:
        self.graph = graph
        self.channels = channels
        self.keeps = keeps

    def _keep(self, name: str) -> np.ndarray | None:
        group = self.channels.of.get(name)
        return None if group is None else self.keeps.get(id(group))

    def shapes(self) -> None:
        """Give every value of a cut group its new shape."""
        for name, group in self.channels.of.items():
            keep = self._keep(name)
            if keep is not None:
                value, axis = self.graph.values[name], group.axes[name]
                shape = list(value.shape)
                shape[axis] = shape[axis] // group.count * int(keep.sum())
                value.shape = tuple(shape)

    def constants_of(self, node: Node) -> None:
        """Cut the constant operands of a node, by the shapes before the cut."""
        out = node.outputs[0]
        keep = self._keep(out)
        if keep is None or node.domain == SPARSETVM_DOMAIN or node.is_op("Reshape", "Squeeze", "Unsqueeze"):
            return
        shape, axis = self.graph.values[out].shape, self.channels.of[out].axes[out]
        for position, name in enumerate(node.inputs):
            data = self.graph.constant(name)
            place = axis - len(shape) + (0 if data is None else data.ndim)
            if data is not None and place >= 0 and data.shape[place] == shape[axis]:
                kept = np.compress(np.repeat(keep, shape[axis] // keep.size), data, axis=place)
                node.inputs[position] = self.graph.add_constant(f"{name}.kept", kept).name

    def node(self, node: Node) -> int:
        """Cut a node's weights, or what it says about shapes; returns how many channels of a layer went."""
        layer = is_layer(node)
        if layer:
            self._columns(node)
        keep = self._keep(node.outputs[0])
        if keep is None:
            return 0
        if node.is_op("Reshape"):
            out = self.graph.values[node.outputs[0]]
            shape = self.graph.add_constant(f"{node.name}.shape", np.array(out.shape, np.int64))
            node.inputs = [node.inputs[0], shape.name]
        depthwise = node.is_op("depthwise_conv2d", domain=SPARSETVM_DOMAIN)
        if not layer and not depthwise:
            return 0
        node.attrs["weight"] = node.attrs["weight"][keep]
        if node.attrs["bias"] is not None:
            node.attrs["bias"] = node.attrs["bias"][keep]
        if depthwise:
            left = int(keep.sum())
            node.attrs["conv"] = msgspec.structs.replace(node.attrs["conv"], in_channels=left, groups=left)
        return int(keep.size - keep.sum())

    def _columns(self, layer: Node) -> None:
        """Cut the columns of the channels that go, after their constant's share went into the bias."""
        x = layer.inputs[0]
        keep = self._keep(x)
        if keep is None:
            return
        weight: np.ndarray = layer.attrs["weight"]
        cubes = weight.reshape(weight.shape[0], keep.size, -1)
        constants = np.nan_to_num(self.channels.constants[x][~keep].astype(np.float64))
        share = cubes[:, ~keep].sum(axis=2, dtype=np.float64) @ constants
        if share.any():
            layer.attrs["bias"] = (bias_of(layer) + share).astype(np.float32)
            layer.attrs["epilogue"] = msgspec.structs.replace(layer.attrs["epilogue"], bias=True)
        layer.attrs["weight"] = np.ascontiguousarray(cubes[:, keep].reshape(weight.shape[0], -1))
        if layer.attrs["conv"] is not None:
            layer.attrs["conv"] = msgspec.structs.replace(layer.attrs["conv"], in_channels=int(keep.sum()))
