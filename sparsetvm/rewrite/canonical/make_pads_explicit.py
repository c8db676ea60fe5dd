"""Write out what convolutions and pools leave implicit: padding, kernel shape, strides, dilations, windows cut short.

Before:  Conv(x, W) {auto_pad=SAME_UPPER, strides=[2, 2]}
After:   Conv(x, W) {kernel_shape=[3, 3], pads=[0, 0, 1, 1], strides=[2, 2], dilations=[1, 1], group=1}
Before:  MaxPool(x) {kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1}      of an image of 8 x 8
After:   MaxPool(x) {kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1]}
"""

from __future__ import annotations

from typing import Any

from sparsetvm.core.graph import Graph, Node

_WINDOW_OPS = ("Conv", "MaxPool", "AveragePool", "LpPool")


def make_pads_explicit(graph: Graph) -> bool:
    """Fill in the attributes of every Conv and pool; returns whether anything changed."""
    changed = False
    for node in graph.nodes:
        if node.is_op(*_WINDOW_OPS):
            attrs = _whole_windows(graph, node, _explicit(graph, node))
            changed |= attrs != node.attrs
            node.attrs = attrs
    return changed


def _explicit(graph: Graph, node: Node) -> dict[str, Any]:
    attrs = dict(node.attrs)
    spatial = graph.values[node.inputs[0]].shape[2:]
    rank = len(spatial)
    if node.op == "Conv":
        attrs.setdefault("group", 1)
        attrs.setdefault("kernel_shape", list(graph.values[node.inputs[1]].shape[2:]))
    strides = attrs.setdefault("strides", [1] * rank)
    dilations = attrs.get("dilations", [1] * rank)
    # AveragePool and LpPool know dilations only from opset 19 and 18 on.
    if node.op in ("Conv", "MaxPool") and (node.op == "Conv" or graph.opset >= 10):
        attrs["dilations"] = dilations
    mode = attrs.pop("auto_pad", "NOTSET")
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        pads = [0] * (2 * rank) if mode == "VALID" else list(attrs.get("pads", [0] * (2 * rank)))
        return {**attrs, "pads": pads}
    begins, ends = [], []
    for size, kernel, stride, dilation in zip(spatial, attrs["kernel_shape"], strides, dilations, strict=True):
        window = dilation * (kernel - 1) + 1
        total = max((-(-size // stride) - 1) * stride + window - size, 0)
        small, large = total // 2, total - total // 2
        begins.append(small if mode == "SAME_UPPER" else large)
        ends.append(large if mode == "SAME_UPPER" else small)
    return {**attrs, "pads": begins + ends}


def _whole_windows(graph: Graph, node: Node, attrs: dict[str, Any]) -> dict[str, Any]:
    """Padding in place of ceil_mode, where padding does not count."""
    counted = node.op != "MaxPool" and (node.op != "AveragePool" or attrs.get("count_include_pad", 0))
    if not attrs.get("ceil_mode", 0) or counted or len(node.outputs) > 1:
        return attrs
    spatial, out = (graph.values[name].shape[2:] for name in (node.inputs[0], node.outputs[0]))
    rank, pads = len(spatial), list(attrs["pads"])
    dilations = attrs.get("dilations", [1] * rank)
    for axis, (size, windows) in enumerate(zip(spatial, out, strict=True)):
        window = dilations[axis] * (attrs["kernel_shape"][axis] - 1) + 1
        last = (windows - 1) * attrs["strides"][axis]
        if last >= size + pads[axis]:  # a window of padding alone, which shape inference and runtimes see differently
            return attrs
        pads[rank + axis] += max(0, last + window - (size + pads[axis] + pads[rank + axis]))
    return {**{name: value for name, value in attrs.items() if name != "ceil_mode"}, "pads": pads}
