"""Which nodes outside the layers have a kernel of their own, and how it is built."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from sparsetvm.core.graph import SPARSETVM_DOMAIN, Graph, Node
from sparsetvm.core.layout import AnyLayout, BatchTiles, Plain, Planes, PlaneTiles
from sparsetvm.core.target import Target
from sparsetvm.core.workload import ConvGeometry, Epilogue
from sparsetvm.rewrite.assign_layouts import layer_norm_fits
from sparsetvm.rewrite.fuse_epilogues import activation_of
from sparsetvm.rewrite.resized_axes import resized_axes
from sparsetvm.schedules.operators import Pooling


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


def gather_kernel(graph: Graph, node: Node, target: Target) -> RemainderKernel:
    """The kernel of a "gather": its arguments are the slices of its input, then the output."""
    source, count, out = graph.values[node.inputs[0]], int(node.attrs["count"]), graph.values[node.outputs[0]].layout
    if isinstance(out, BatchTiles):
        lanes = _schedules(target, "batch_tiles")
        return RemainderKernel(
            ("gather_lanes", source.layout, source.shape, out),
            lambda symbol: lanes.gather_lanes_kernel(source.layout, source.shape, out, target, symbol),
            [source.name],
        )
    kernels = _schedules(target, "gather")
    shape = source.layout.physical_shape(source.shape)
    return RemainderKernel(
        ("gather", shape, count), lambda symbol: kernels.gather_kernel(shape, count, target, symbol), [source.name]
    )


def _schedules(target: Target, name: str) -> Any:
    """The schedules of one kind of node for the target's kind of device; all devices have the same functions."""
    device = "cuda" if target.kind == "cuda" else "x86"
    return importlib.import_module(f"sparsetvm.schedules.{device}.remainder.{name}")


def _convert(graph: Graph, node: Node, target: Target) -> RemainderKernel:
    kernels = _schedules(target, "convert")
    source, out = graph.values[node.inputs[0]], graph.values[node.outputs[0]]
    return RemainderKernel(
        ("convert", source.layout, out.layout, source.shape),
        lambda symbol: kernels.convert_kernel(source.layout, out.layout, source.shape, target, symbol),
        [source.name],
    )


def _transpose_images(graph: Graph, node: Node, target: Target) -> RemainderKernel:
    kernels = _schedules(target, "tokens")
    source, out = (graph.values[name].layout for name in (node.inputs[0], node.outputs[0]))
    return RemainderKernel(
        ("transpose_images", source, out),
        lambda symbol: kernels.transpose_images_kernel(source, out, target, symbol),
        list(node.inputs),
    )


def _depthwise(graph: Graph, node: Node, target: Target) -> RemainderKernel:
    kernels = _schedules(target, "depthwise")
    source, out = (graph.values[name].layout for name in (node.inputs[0], node.outputs[0]))
    if not isinstance(source, Planes) or not isinstance(out, Planes):
        raise TypeError(f"'{node.name}': depthwise convolution needs planes")
    conv, epilogue = node.attrs["conv"], node.attrs["epilogue"]
    return RemainderKernel(
        ("depthwise", source, out, conv, epilogue),
        lambda symbol: kernels.depthwise_kernel(source, out, conv, epilogue, target, symbol),
        list(node.inputs),
        list(kernels.pack_depthwise(node.attrs["weight"].reshape(-1, *conv.kernel), node.attrs["bias"])),
    )


def _pooled_conv(graph: Graph, node: Node, target: Target) -> RemainderKernel:
    kernels = _schedules(target, "pooled_conv")
    source, out = (graph.values[name].layout for name in (node.inputs[0], node.outputs[0]))
    if not isinstance(out, Planes):
        raise TypeError(f"'{node.name}': a pooled convolution writes planes")
    conv, epilogue = node.attrs["conv"], node.attrs["epilogue"]
    return RemainderKernel(
        ("pooled_conv", source, out, conv, epilogue),
        lambda symbol: kernels.pooled_conv_kernel(source, out, conv, epilogue, target, symbol),
        list(node.inputs),
        list(kernels.pack_pooled_conv(node.attrs["weight"], node.attrs["bias"], conv)),
    )


def _pool(graph: Graph, node: Node, target: Target) -> RemainderKernel | None:
    source, out = graph.values[node.inputs[0]], graph.values[node.outputs[0]]
    if isinstance(source.layout, Plain):
        return None
    if isinstance(source.layout, PlaneTiles):
        return _pick(node, source.layout, out.layout, target)
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
    if isinstance(source.layout, BatchTiles):
        return RemainderKernel(
            ("pool", source.layout, out.layout, pooling),
            lambda symbol: _schedules(target, "batch_pooling").batch_pooling_kernel(
                source.layout, out.layout, pooling, target, symbol
            ),
            [source.name],
        )
    kernels = _schedules(target, "pooling")
    return RemainderKernel(
        ("pool", source.layout, out.layout, batch, pooling),
        lambda symbol: kernels.pooling_kernel(source.layout, out.layout, batch, pooling, target, symbol),
        [source.name],
    )


def _pick(node: Node, source: PlaneTiles, out: AnyLayout, target: Target) -> RemainderKernel:
    """A pool of one pixel."""
    kernels = _schedules(target, "pick")
    if not isinstance(out, PlaneTiles):
        raise TypeError(f"'{node.name}': pixels are picked from plane tiles into plane tiles")
    strides = (int(node.attrs["strides"][0]), int(node.attrs["strides"][1]))
    tables = kernels.pick_tables(source, out, strides, target)
    return RemainderKernel(
        ("pick", source, out, strides),
        lambda symbol: kernels.pick_kernel(source, out, tables, target, symbol),
        list(node.inputs),
        list(tables),
    )


def _global_pool(graph: Graph, node: Node, target: Target) -> RemainderKernel:
    source = graph.values[node.inputs[0]]
    kind: Literal["max", "average"] = "max" if node.op == "GlobalMaxPool" else "average"
    if isinstance(source.layout, BatchTiles):
        in_lanes = source.layout
        return RemainderKernel(
            ("global_pool", kind, in_lanes),
            lambda symbol: _schedules(target, "batch_pooling").batch_global_pooling_kernel(
                in_lanes, kind, target, symbol
            ),
            [source.name],
        )
    kernels = _schedules(target, "pooling")
    return RemainderKernel(
        ("global_pool", kind, source.layout, source.shape),
        lambda symbol: kernels.global_pooling_kernel(source.layout, source.shape, kind, target, symbol),
        [source.name],
    )


def _layer_norm(graph: Graph, node: Node, target: Target) -> RemainderKernel | None:
    source = graph.values[node.inputs[0]]
    scale = graph.constant(node.inputs[1])
    offset = graph.constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if scale is None or not layer_norm_fits(node, source) or source.dtype != "float32":
        return None
    kernels = _schedules(target, "layer_norm")
    epsilon = float(node.attrs.get("epsilon", 1e-5))
    beta = np.zeros_like(scale) if offset is None else offset
    centred = node.op == "LayerNormalization"
    return RemainderKernel(
        ("layer_norm", source.layout, source.shape, epsilon, centred),
        lambda symbol: kernels.layer_norm_kernel(source.layout, source.shape, epsilon, target, symbol, centred),
        [source.name],
        [scale.reshape(-1), beta.reshape(-1)],
    )


def _softmax(graph: Graph, node: Node, target: Target) -> RemainderKernel | None:
    source = graph.values[node.inputs[0]]
    # Before opset 13 softmax flattened everything from `axis` on; the last axis means the same in both.
    axis = int(node.attrs.get("axis", -1 if graph.opset >= 13 else 1))
    if axis not in (-1, len(source.shape) - 1) or source.dtype != "float32" or not source.shape:
        return None
    kernels = _schedules(target, "softmax")
    softmax = kernels.Softmax(source.shape)
    return RemainderKernel(
        ("softmax", softmax), lambda symbol: kernels.softmax_kernel(softmax, target, symbol), [source.name]
    )


def _masked_softmax(graph: Graph, node: Node, target: Target) -> RemainderKernel:
    kernels = _schedules(target, "softmax")
    source, *masks = (graph.values[name] for name in node.inputs)
    softmax = kernels.Softmax(source.shape, float(node.attrs["scale"]), masks[0].shape if masks else None)
    return RemainderKernel(
        ("softmax", softmax), lambda symbol: kernels.softmax_kernel(softmax, target, symbol), list(node.inputs)
    )


def _attention(graph: Graph, node: Node, target: Target) -> RemainderKernel:
    kernels = _schedules(target, "attention")
    batch, seq, features = graph.values[node.inputs[0]].shape
    heads = int(node.attrs["heads"])
    mask = graph.values[node.inputs[3]].shape if len(node.inputs) > 3 else None
    attention = kernels.Attention(batch, seq, heads, features // heads, float(node.attrs["scale"]), mask)
    return RemainderKernel(
        ("attention", attention), lambda symbol: kernels.attention_kernel(attention, target, symbol), list(node.inputs)
    )


def _rotary(graph: Graph, node: Node, target: Target) -> RemainderKernel:
    kernels = _schedules(target, "rotary")
    layout, cosines = graph.values[node.inputs[0]].layout, node.attrs["cosines"]
    return RemainderKernel(
        ("rotary", layout, cosines.shape[1]),
        lambda symbol: kernels.rotary_kernel(layout, cosines.shape[1], target, symbol),
        list(node.inputs),
        list(kernels.rotary_tables(layout, cosines, node.attrs["sines"])),
    )


def _batch_matmul(graph: Graph, node: Node, target: Target) -> RemainderKernel | None:
    left, right = (graph.values[name] for name in node.inputs)
    plain = all(isinstance(value.layout, Plain) and value.dtype == "float32" for value in (left, right))
    if not plain or min(len(left.shape), len(right.shape)) < 2:
        return None
    kernels = _schedules(target, "batch_matmul")
    product = kernels.BatchMatmul(left.shape, right.shape)
    if not kernels.batch_matmul_supported(product):
        return None
    return RemainderKernel(
        ("batch_matmul", product),
        lambda symbol: kernels.batch_matmul_kernel(product, target, symbol),
        [left.name, right.name],
    )


def _binary(graph: Graph, node: Node, target: Target) -> RemainderKernel | None:
    left, right = (graph.values[name] for name in node.inputs)
    if isinstance(left.layout, Plain) or left.shape != right.shape:
        return None
    kernels = _schedules(target, "elementwise")
    op: Literal["add", "mul"] = "add" if node.op == "Add" else "mul"
    return RemainderKernel(
        (op, left.layout, left.shape),
        lambda symbol: kernels.binary_kernel(op, left.layout, left.shape, Epilogue(), target, symbol),
        [left.name, right.name],
    )


def _scale_channels(graph: Graph, node: Node, target: Target) -> RemainderKernel:
    kernels = _schedules(target, "elementwise")
    image = graph.values[node.inputs[0]]
    return RemainderKernel(
        ("scale_channels", image.layout, image.shape),
        lambda symbol: kernels.scale_channels_kernel(image.layout, image.shape, target, symbol),
        list(node.inputs),
    )


def _affine_channels(graph: Graph, node: Node, target: Target) -> RemainderKernel:
    kernels = _schedules(target, "elementwise")
    image, epilogue = graph.values[node.inputs[0]], node.attrs["epilogue"]
    return RemainderKernel(
        ("affine_channels", image.layout, image.shape, epilogue),
        lambda symbol: kernels.affine_channels_kernel(image.layout, image.shape, epilogue, target, symbol),
        list(node.inputs),
        [node.attrs["scale"], node.attrs["shift"]],
    )


def _concat(graph: Graph, node: Node, target: Target) -> RemainderKernel | None:
    parts, out = [graph.values[name].layout for name in node.inputs], graph.values[node.outputs[0]].layout
    if not isinstance(out, Planes):
        return None
    kernels = _schedules(target, "concat")
    return RemainderKernel(
        ("concat", *parts), lambda symbol: kernels.concat_kernel(parts, out, target, symbol), list(node.inputs)
    )


def _gather_channels(graph: Graph, node: Node, target: Target) -> RemainderKernel:
    """Channels of several images; with a factor and an addend for each where the node has them."""
    kernels = _schedules(target, "channels")
    parts, out = [graph.values[name].layout for name in node.inputs], graph.values[node.outputs[0]].layout
    epilogue: Epilogue | None = node.attrs.get("epilogue")
    factors = [] if epilogue is None else [node.attrs["scale"], node.attrs["shift"]]
    return RemainderKernel(
        ("gather_channels", *parts, out, epilogue),
        lambda symbol: kernels.gather_channels_kernel(parts, out, epilogue, target, symbol),
        list(node.inputs),
        [kernels.channel_table(node.attrs["channels"], parts), *factors],
    )


def _resize(graph: Graph, node: Node, target: Target) -> RemainderKernel | None:
    axes = resized_axes(graph, node, target)
    if axes is None:
        return None
    kernels = _schedules(target, "resize")
    source, out = graph.values[node.inputs[0]], graph.values[node.outputs[0]]
    return RemainderKernel(
        ("resize", source.layout, out.layout, source.shape, *axes),
        lambda symbol: kernels.resize_kernel(source.layout, out.layout, source.shape, *axes, target, symbol),
        [source.name],
        list(kernels.resize_tables(*axes, target)),
    )


def _cast(graph: Graph, node: Node, target: Target) -> RemainderKernel | None:
    source, out = graph.values[node.inputs[0]], graph.values[node.outputs[0]]
    if target.kind != "cuda" or {source.dtype, out.dtype} != {"float16", "float32"}:
        return None
    kernels = _schedules(target, "cast")
    count, narrow = math.prod(source.shape), out.dtype == "float16"
    return RemainderKernel(
        ("cast", count, narrow), lambda symbol: kernels.cast_kernel(count, narrow, target, symbol), [source.name]
    )


def _unary(graph: Graph, node: Node, target: Target) -> RemainderKernel | None:
    source = graph.values[node.inputs[0]]
    fused = activation_of(node)
    if fused is None or source.dtype != "float32":
        return None
    kernels = _schedules(target, "elementwise")
    epilogue = Epilogue(**fused)
    return RemainderKernel(
        ("unary", source.layout, source.shape, epilogue),
        lambda symbol: kernels.unary_kernel(source.layout, source.shape, epilogue, target, symbol),
        [source.name],
    )


def _k_winners(graph: Graph, node: Node, target: Target) -> RemainderKernel:
    kernels = _schedules(target, "k_winners")
    source, k, ties = graph.values[node.inputs[0]], int(node.attrs["k"]), node.attrs["ties"]
    axis, layouts = int(node.attrs.get("axis", -1)), (source.layout, graph.values[node.outputs[0]].layout)
    return RemainderKernel(
        ("k_winners", source.shape, k, ties, axis, layouts),
        lambda symbol: kernels.k_winners_kernel(source.shape, k, ties, target, symbol, axis=axis, layouts=layouts),
        [source.name],
    )


_Rule = Callable[[Graph, Node, Target], RemainderKernel | None]
_RULES: dict[str, _Rule] = {
    "sparsetvm.convert": _convert,
    "sparsetvm.transpose_images": _transpose_images,
    "sparsetvm.depthwise_conv2d": _depthwise,
    "sparsetvm.pooled_conv2d": _pooled_conv,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "GlobalAveragePool": _global_pool,
    "GlobalMaxPool": _global_pool,
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _layer_norm,
    "Softmax": _softmax,
    "sparsetvm.masked_softmax": _masked_softmax,
    "sparsetvm.attention": _attention,
    "sparsetvm.rotary": _rotary,
    "sparsetvm.k_winners": _k_winners,
    "sparsetvm.scale_channels": _scale_channels,
    "sparsetvm.affine_channels": _affine_channels,
    "sparsetvm.gather_channels": _gather_channels,
    "Concat": _concat,
    "Resize": _resize,
    "Add": _binary,
    "Mul": _binary,
    "Cast": _cast,
    "MatMul": _batch_matmul,
    "Relu": _unary,
    "Sigmoid": _unary,
    "Gelu": _unary,
    "sparsetvm.Silu": _unary,
    "sparsetvm.HardSwish": _unary,
    "sparsetvm.Clip": _unary,
}
