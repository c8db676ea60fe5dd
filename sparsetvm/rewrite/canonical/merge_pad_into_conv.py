"""Merge a constant Pad into the convolution or pool that reads it.

Before:  p = Pad(x) {pads, value 0}; y = Conv(p, W)        After:  y = Conv(x, W) {pads}

A MaxPool pads with minus infinity: zeros may stand for it when no input is negative (after a Relu). An AveragePool must
count the padding. Requires explicit pads.
"""

from __future__ import annotations

import numpy as np

from sparsetvm.core.graph import SPARSETVM_DOMAIN, Graph, Node
from sparsetvm.rewrite.canonical.edit import Uses, integers, merged_origin, scalar

_NOT_NEGATIVE = ("Relu", "Sigmoid", "Softmax", "Abs", "Exp", "Softplus")


def merge_pad_into_conv(graph: Graph) -> bool:
    """Merge every Pad that only adds spatial border; returns whether anything changed."""
    uses = Uses(graph)
    changed = False
    for node in graph.nodes:
        pad = uses.producer(node.inputs[0], "Pad") if node.is_op("Conv", "MaxPool", "AveragePool") else None
        if pad is None or "auto_pad" in node.attrs:
            continue
        border = _spatial_border(graph, pad)
        if border is None or not _may_merge(graph, uses, node, pad, border):
            continue
        own = node.attrs.get("pads") or [0] * len(border)
        node.attrs["pads"] = [a + b for a, b in zip(own, border, strict=True)]
        if node.op == "AveragePool":
            node.attrs["count_include_pad"] = 1
        node.inputs[0] = pad.inputs[0]
        node.origin = merged_origin([node, pad])
        changed = True
    if changed:
        graph.prune_dead()
    return changed


def _spatial_border(graph: Graph, pad: Node) -> list[int] | None:
    """Begins then ends of the spatial axes; None when other axes are padded, or anything is cut off."""
    rank = len(graph.values[pad.inputs[0]].shape)
    pads = integers(graph, pad, "pads", 1)
    if pads is None or pad.attrs.get("mode", "constant") != "constant":
        return None
    axes = list(range(rank))
    if len(pad.inputs) > 3 and pad.inputs[3]:
        given = integers(graph, pad, "axes", 3)
        if given is None:
            return None
        axes = [axis % rank for axis in given]
    full = np.zeros((2, rank), np.int64)
    full[:, axes] = np.array(pads, np.int64).reshape(2, -1)
    if np.any(full < 0) or np.any(full[:, :2]):
        return None
    return [int(v) for v in full[:, 2:].reshape(-1)]


def _fill(graph: Graph, pad: Node) -> float | None:
    if len(pad.inputs) > 2 and pad.inputs[2]:
        return scalar(graph, pad.inputs[2])
    return float(pad.attrs.get("value", 0.0))


def _may_merge(graph: Graph, uses: Uses, node: Node, pad: Node, border: list[int]) -> bool:
    fill = _fill(graph, pad)
    if fill is None:
        return False
    if node.op == "Conv":
        return fill == 0.0
    kernel = [int(k) for k in node.attrs["kernel_shape"]]
    own = node.attrs.get("pads") or [0] * len(border)
    total = [a + b for a, b in zip(own, border, strict=True)]
    # Every window must keep a real element; with ceil_mode the padding decides how many windows there are.
    if node.attrs.get("ceil_mode", 0) or any(p >= k for p, k in zip(total, kernel * 2, strict=True)):
        return False
    if node.op == "AveragePool":
        return fill == 0.0 and (not any(own) or bool(node.attrs.get("count_include_pad", 0)))
    if fill <= float(np.finfo(np.float32).min):
        return True
    return fill == 0.0 and not any(own) and _is_not_negative(uses, pad.inputs[0])


def _is_not_negative(uses: Uses, name: str) -> bool:
    clip = uses.producer(name, "Clip", domain=SPARSETVM_DOMAIN)
    return uses.producer(name, *_NOT_NEGATIVE) is not None or (clip is not None and clip.attrs["low"] >= 0)
