"""Drop the rows and columns of a convolution's kernel that read nothing but padding.

Before:  Conv(x, W[m, c, 3, 3]) {dilations=[24, 24], pads=[24, 24, 24, 24]}      of an image of 16 x 16
After:   Conv(x, W[m, c, 1, 1]) {dilations=[24, 24], pads=[0, 0, 0, 0]}

Spatial pyramids of dilated convolutions (DeepLab) have such taps on all but large images.
"""

from __future__ import annotations

import numpy as np

from sparsetvm.core.graph import Graph, Node
from sparsetvm.rewrite.canonical.edit import rewrite_each


def drop_dead_taps(graph: Graph) -> bool:
    """Crop every such kernel of a 2-D convolution with constant weights; returns whether anything changed."""
    return rewrite_each(graph, ("Conv",), _crop)


def _crop(graph: Graph, node: Node) -> bool:
    weight = graph.constant(node.inputs[1])
    if weight is None or weight.ndim != 4 or not weight.size or "pads" not in node.attrs:
        return False
    sizes, outs = (graph.values[name].shape[2:] for name in (node.inputs[0], node.outputs[0]))
    strides, dilations = node.attrs.get("strides") or [1, 1], node.attrs.get("dilations") or [1, 1]
    pads, kept = list(node.attrs["pads"]), []
    for axis in (0, 1):
        first = np.arange(outs[axis])[:, None] * strides[axis] - pads[axis]
        reads = first + np.arange(weight.shape[2 + axis]) * dilations[axis]  # (outputs, taps)
        alive = np.flatnonzero(((reads >= 0) & (reads < sizes[axis])).any(axis=0))
        begin, end = (int(alive[0]), int(alive[-1]) + 1) if alive.size else (0, weight.shape[2 + axis])
        pads[axis] -= begin * dilations[axis]
        pads[2 + axis] -= (weight.shape[2 + axis] - end) * dilations[axis]
        kept.append(slice(begin, end))
    cropped = np.ascontiguousarray(weight[:, :, kept[0], kept[1]])
    if cropped.shape == weight.shape or min(pads) < 0:
        return False
    node.inputs = [node.inputs[0], graph.add_constant(f"{node.inputs[1]}.taps", cropped).name, *node.inputs[2:]]
    node.attrs = {**node.attrs, "kernel_shape": list(cropped.shape[2:]), "pads": pads}
    return True
