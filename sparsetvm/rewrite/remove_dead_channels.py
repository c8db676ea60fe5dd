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

import numpy as np

from sparsetvm.core.graph import Graph, Node
from sparsetvm.core.workload import ConvGeometry
from sparsetvm.rewrite.channel_groups import ChannelGroup, ChannelGroups, is_layer
from sparsetvm.rewrite.select_channels import select_channels, taps

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
    kept = {key: np.flatnonzero(keep) for key, keep in keeps.items() if not keep.all()}
    for name, count in select_channels(graph, channels, kept).items():
        removed[name] = removed.get(name, 0) + count
    return bool(kept)


def _alive(graph: Graph, channels: ChannelGroups, group: ChannelGroup) -> np.ndarray:
    """(count,) bool: the channels that some layer needs."""
    needed = np.zeros(group.count, bool)
    for node in graph.nodes:
        if is_layer(node) and channels.of.get(node.inputs[0]) is group:
            read = node.attrs["weight"].reshape(-1, group.count, taps(node, group)).any(axis=(0, 2))
            constants = channels.constants[node.inputs[0]]
            folds = constants == 0 if _padded(node) else np.isfinite(constants)
            needed |= read & ~folds
    needed[np.flatnonzero(~needed)[: max(0, _FEWEST - int(needed.sum()))]] = True
    return needed if np.count_nonzero(~needed) >= _WORTH * group.count else np.ones(group.count, bool)


def _padded(layer: Node) -> bool:
    conv: ConvGeometry | None = layer.attrs["conv"]
    return conv is not None and any(conv.pads)
