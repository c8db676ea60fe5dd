"""Which nodes outside the layers have a kernel of their own, and how it is built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sparsetvm.core.graph import SPARSETVM_DOMAIN, Graph, Node
from sparsetvm.core.layout import Plain, Planes
from sparsetvm.core.target import Target
from sparsetvm.core.workload import ConvGeometry


@dataclass
class RemainderKernel:
    """key: equal keys share a kernel. inputs: value names in argument order; constants follow them, then the output."""

    key: tuple[object, ...]
    build: Callable[[str], Any]
    inputs: list[str]
    constants: list[np.ndarray] = field(default_factory=list)


def remainder_kernel(graph: Graph, node: Node, target: Target) -> RemainderKernel | None:
    """The kernel of a node, None when TVM's own operators serve it."""
    own = node.domain == SPARSETVM_DOMAIN
    rule = _RULES.get(("sparsetvm." if own else "") + node.op)
    return rule(graph, node, target) if rule else None


def _convert(graph: Graph, node: Node, target: Target) -> RemainderKernel:
    from sparsetvm.schedules.x86.remainder.convert import convert_kernel

    source, out = graph.values[node.inputs[0]], graph.values[node.outputs[0]]
    return RemainderKernel(
        ("convert", source.layout, out.layout, source.shape),
        lambda symbol: convert_kernel(source.layout, out.layout, source.shape, target, symbol),
        [source.name],
    )


def _depthwise(graph: Graph, node: Node, target: Target) -> RemainderKernel:
    from sparsetvm.schedules.x86.remainder.depthwise import depthwise_kernel, pack_depthwise

    source, out = (graph.values[name].layout for name in (node.inputs[0], node.outputs[0]))
    if not isinstance(source, Planes) or not isinstance(out, Planes):
        raise TypeError(f"'{node.name}': depthwise convolution needs planes")
    conv, epilogue = node.attrs["conv"], node.attrs["epilogue"]
    return RemainderKernel(
        ("depthwise", source, out, conv, epilogue),
        lambda symbol: depthwise_kernel(source, out, conv, epilogue, target, symbol),
        list(node.inputs),
        list(pack_depthwise(node.attrs["weight"].reshape(-1, *conv.kernel), node.attrs["bias"])),
    )


def _pool(graph: Graph, node: Node, target: Target) -> RemainderKernel | None:
    from sparsetvm.schedules.x86.remainder.pooling import Pooling, pooling_kernel

    source, out = graph.values[node.inputs[0]], graph.values[node.outputs[0]]
    if isinstance(source.layout, Plain):
        return None
    batch, channels, height, width = source.shape
    kernel, attrs = node.attrs["kernel_shape"], node.attrs
    strides, pads = attrs.get("strides") or [1, 1], attrs.get("pads") or [0, 0, 0, 0]
    window = ConvGeometry(
        channels,
        height,
        width,
        (int(kernel[0]), int(kernel[1])),
        (int(strides[0]), int(strides[1])),
        (int(pads[0]), int(pads[1]), int(pads[2]), int(pads[3])),
    )
    pooling = Pooling("max" if node.op == "MaxPool" else "average", window, bool(attrs.get("count_include_pad", 0)))
    return RemainderKernel(
        ("pool", source.layout, out.layout, batch, pooling),
        lambda symbol: pooling_kernel(source.layout, out.layout, batch, pooling, target, symbol),
        [source.name],
    )


_Rule = Callable[[Graph, Node, Target], RemainderKernel | None]
_RULES: dict[str, _Rule] = {
    "sparsetvm.convert": _convert,
    "sparsetvm.depthwise_conv2d": _depthwise,
    "MaxPool": _pool,
    "AveragePool": _pool,
}
