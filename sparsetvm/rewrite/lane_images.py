"""Which convolutions take one image per lane (`BatchTiles`): those whose images are too small for whole vectors.

Planes cut an image into vectors of neighbouring pixels. At 7x7 they leave 23 % of the lanes empty, at 14x14 12 %, for
zero columns and the last vector. Where as many images go through a network at once as a vector has lanes, a vector can
hold one pixel of all of them: no lane is empty, and a neighbouring pixel is a whole vector further on.
"""

from __future__ import annotations

import math

import numpy as np

from sparsetvm.core.graph import SPARSETVM_DOMAIN, Graph, Node
from sparsetvm.core.layout import Planes
from sparsetvm.core.target import Target
from sparsetvm.rewrite.plane_geometry import COMMON_PAD, depthwise_pad, plane_pads

# Share of the work in empty lanes from which it pays to put images into lanes.
_WORTH_IT = 0.05
_IN_PLANES_OWN = ("depthwise_conv2d", "affine_channels", "gather_channels", "scale_channels")


def layers_in_lanes(graph: Graph, target: Target) -> frozenset[str]:
    """Names of the convolutions that read and write `BatchTiles`: all of those that run on `lanes` images, or none."""
    work, empty = work_of_nodes(graph), empty_lanes(graph, target)
    chosen = [at for at, node in enumerate(graph.nodes) if work[at] and _batch(graph, node) == target.lanes]
    others = (node for node in graph.nodes if _batch(graph, node) == target.lanes)
    if target.kind != "cpu" or any(_stays_in_planes(graph, node) for node in others):
        return frozenset()
    worth_it = pays(sum(empty[at] for at in chosen), sum(work[at] for at in chosen))
    return frozenset(graph.nodes[at].name for at in chosen) if worth_it else frozenset()


def pays(empty: float, work: float) -> bool:
    """Whether convolutions gain from images in lanes that do `work` in lanes with a pixel and `empty` in others."""
    return empty > _WORTH_IT * work


def work_of_nodes(graph: Graph) -> list[float]:
    """For each node, the floating-point operations of a convolution for one image; 0 for others."""
    return [
        2.0 * int(np.count_nonzero(node.attrs["weight"])) * math.prod(graph.values[node.outputs[0]].shape[2:])
        if _convolves(node)
        else 0.0
        for node in graph.nodes
    ]


def empty_lanes(graph: Graph, target: Target) -> list[float]:
    """For each node, the operations that it would do on planes for one image in lanes without a pixel.

    0 for whatever is no convolution, and up to the last node that cannot have images in lanes.
    """
    pads = plane_pads(graph)
    last = max((at for at, node in enumerate(graph.nodes) if _stays_in_planes(graph, node)), default=-1)
    return [
        work * (_lanes_per_pixel(graph, node, pads, target) - 1) if work and at > last else 0.0
        for at, (node, work) in enumerate(zip(graph.nodes, work_of_nodes(graph), strict=True))
    ]


def _lanes_per_pixel(graph: Graph, node: Node, pads: dict[tuple[int, int], int], target: Target) -> float:
    height, width = graph.values[node.outputs[0]].shape[2:]
    planes = Planes(1, 1, height, width, pads.get((height, width), 0), target.lanes)
    return planes.tiles * planes.lanes / (height * width)


def _convolves(node: Node) -> bool:
    return node.is_op("conv2d", "depthwise_conv2d", domain=SPARSETVM_DOMAIN)


def _stays_in_planes(graph: Graph, node: Node) -> bool:
    """True for what reads planes and has no kernel for images in lanes, or would need many zeros around them."""
    if node.is_op(*_IN_PLANES_OWN, domain=SPARSETVM_DOMAIN) or node.is_op("Resize"):
        return True
    if node.is_op("conv2d", domain=SPARSETVM_DOMAIN):
        return depthwise_pad(node.attrs["conv"]) > COMMON_PAD
    shapes = [graph.values[name].shape for name in node.inputs if name]
    images = len(shapes) > 1 and len(graph.values[node.outputs[0]].shape) == 4
    return images and (node.is_op("Concat") or (node.is_op("Mul") and shapes[0] != shapes[1]))


def _batch(graph: Graph, node: Node) -> int:
    return (*graph.values[node.outputs[0]].shape, 0)[0]
