"""Take the stride out of 1x1 convolutions.

Before:  conv2d 1x1, stride 2
After:   AveragePool 1x1, stride 2 -> conv2d 1x1

A strided 1x1 convolution reads one pixel in four: picking those first moves a quarter of the data that a split into
stride phases would, and the convolution then reads plain planes. A pool of one pixel is that pick. It comes right
behind the node whose result it reads, which is then in the caches, and only a quarter lives on.
"""

from __future__ import annotations

import msgspec

from sparsetvm.core.graph import SPARSETVM_DOMAIN, Graph, Node
from sparsetvm.core.workload import ConvGeometry


def split_strided_pointwise(graph: Graph) -> bool:
    """Split every ungrouped, unpadded 1x1 convolution with a stride; returns whether anything changed."""
    picks: dict[str, list[Node]] = {}
    for node in graph.nodes:
        if node.is_op("conv2d", domain=SPARSETVM_DOMAIN) and _applies(node.attrs["conv"]):
            conv: ConvGeometry = node.attrs["conv"]
            x = graph.values[node.inputs[0]]
            shape = (*x.shape[:2], conv.out_height, conv.out_width)
            picked = graph.add_value(f"{x.name}.picked", shape, x.dtype)
            pool = {"kernel_shape": [1, 1], "strides": list(conv.stride), "pads": [0, 0, 0, 0]}
            pick = Node(f"{node.name}.pick", "AveragePool", [x.name], [picked.name], pool, origin=node.origin)
            picks.setdefault(x.name, []).append(pick)
            node.inputs[0] = picked.name
            node.attrs["conv"] = msgspec.structs.replace(
                conv, in_height=conv.out_height, in_width=conv.out_width, stride=(1, 1)
            )
    graph.nodes = [
        *(pick for name in graph.inputs for pick in picks.get(name, ())),
        *(n for node in graph.nodes for n in (node, *(pick for out in node.outputs for pick in picks.get(out, ())))),
    ]
    return bool(picks)


def _applies(conv: ConvGeometry) -> bool:
    return conv.kernel == (1, 1) and conv.stride != (1, 1) and not any(conv.pads) and conv.groups == 1
