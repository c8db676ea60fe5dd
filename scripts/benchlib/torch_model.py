"""A network as PyTorch runs it: the same graph as ours before layouts are assigned, so that nothing is left unfused.

Batch norms are folded, layer norm, GELU and attention are PyTorch's own kernels, bias is part of the product. What a
user of PyTorch gets by hand, without a compiler.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from sparsetvm.core.graph import SPARSETVM_DOMAIN, Graph, Node
from sparsetvm.core.target import Target
from sparsetvm.core.workload import ConvGeometry, Epilogue
from sparsetvm.frontend.load import load_model
from sparsetvm.rewrite.canonical import canonicalize
from sparsetvm.rewrite.canonical.edit import integers
from sparsetvm.rewrite.fuse_attention import fuse_attention
from sparsetvm.rewrite.fuse_epilogues import fuse_epilogues
from sparsetvm.rewrite.make_layers import make_layers
from sparsetvm.rewrite.move_reshapes import move_reshapes

Tensor = Any
_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
    "Gelu": F.gelu,
    "Silu": F.silu,
    "HardSwish": F.hardswish,
    "Identity": lambda x: x,
}
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": torch.relu_,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "sigmoid": torch.sigmoid_,
    "silu": lambda x: F.silu(x, inplace=True),
    "hard_swish": lambda x: F.hardswish(x, inplace=True),
}
_RESHAPES = ("Reshape", "Squeeze", "Unsqueeze")
_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add,
    "Sub": torch.sub,
    "Mul": torch.mul,
    "Div": torch.div,
    "MatMul": torch.matmul,
    "And": torch.logical_and,
}


class Unsupported(Exception):
    """An operator has no rule here."""


class TorchModel:
    """A model on a device, in "float32" or "float16". In float16 images are channels last: tensor cores."""

    def __init__(self, path: Path, target: Target, device: str, dtype: str) -> None:
        graph = load_model(path, None).graph
        canonicalize(graph)
        fuse_attention(graph, target)
        make_layers(graph)
        move_reshapes(graph)
        fuse_epilogues(graph)
        self.graph: Graph = graph
        self._device, self._dtype = device, getattr(torch, dtype)
        self._format = torch.channels_last if dtype == "float16" else torch.contiguous_format
        self._steps: list[tuple[Node, Callable[..., Tensor]]] = [(node, self._rule(node)) for node in graph.nodes]
        self._constants = {
            value.name: self.tensor(data)
            for value in graph.values.values()
            if value.is_constant and (data := graph.constant(value.name)) is not None
        }

    def tensor(self, array: np.ndarray) -> Tensor:
        """The array on the device, floats in the model's type."""
        tensor = torch.from_numpy(np.array(array)).to(self._device)
        if tensor.is_floating_point():
            tensor = tensor.to(self._dtype)
        return tensor.contiguous(memory_format=self._format) if tensor.dim() == 4 else tensor

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        values = {**self._constants, **dict(zip(self.graph.inputs, inputs, strict=True))}
        for node, step in self._steps:
            result = step(*(values[name] for name in node.inputs if name))
            values.update(zip(node.outputs, result if len(node.outputs) > 1 else [result], strict=True))
        return [values[name] for name in self.graph.outputs]

    def _rule(self, node: Node) -> Callable[..., Tensor]:
        own = node.domain == SPARSETVM_DOMAIN
        if own and node.op == "matmul":
            return self._matmul(node)
        if own and node.op in ("conv2d", "depthwise_conv2d"):
            return self._conv(node)
        if own and node.op == "attention":
            return _attention(node)
        if own and node.op == "rotary":
            return self._rotary(node)
        if own and node.op == "masked_softmax":
            return lambda x, *mask: torch.softmax(x * float(node.attrs["scale"]) + (mask[0] if mask else 0.0), -1)
        if own and node.op == "Clip":
            return lambda x: torch.clamp(x, float(node.attrs["low"]), float(node.attrs["high"]))
        if node.op in _UNARY:
            return _UNARY[node.op]
        if node.op in _BINARY:
            return _BINARY[node.op]
        if node.op in _RESHAPES:
            return lambda x, *_: x.reshape(self.graph.values[node.outputs[0]].shape)
        rule = {
            "Flatten": lambda: lambda x: torch.flatten(x, int(node.attrs.get("axis", 1))),
            "Transpose": lambda: lambda x: x.permute(tuple(node.attrs["perm"])),
            "Concat": lambda: lambda *parts: torch.cat(parts, int(node.attrs["axis"])),
            "Split": lambda: self._split(node),
            "Slice": lambda: self._slice(node),
            "Gather": lambda: self._gather(node),
            "GatherND": lambda: lambda x, at: x[at.unbind(-1)],
            "Where": lambda: torch.where,
            "Cast": lambda: self._cast(node),
            "Resize": lambda: self._resize(node),
            "GlobalAveragePool": lambda: lambda x: x.mean((2, 3), keepdim=True),
            "GlobalMaxPool": lambda: lambda x: x.amax((2, 3), keepdim=True),
            "MaxPool": lambda: _pool(node, F.max_pool2d),
            "AveragePool": lambda: _pool(node, F.avg_pool2d),
            "LayerNormalization": lambda: _layer_norm(node),
            "RMSNormalization": lambda: _rms_norm(node),
            "Softmax": lambda: lambda x: torch.softmax(x, int(node.attrs.get("axis", -1))),
        }.get(node.op)
        if rule is None:
            raise Unsupported(f"{node.op} ('{node.name}') has no rule in the PyTorch executor")
        return rule()

    def _matmul(self, node: Node) -> Callable[..., Tensor]:
        weight = self.tensor(node.attrs["weight"])
        bias = None if node.attrs["bias"] is None else self.tensor(node.attrs["bias"])
        return _finished(lambda x: F.linear(x, weight, bias), node.attrs["epilogue"])

    def _rotary(self, node: Node) -> Callable[..., Tensor]:
        cosines, sines = (self.tensor(node.attrs[name]).unsqueeze(1) for name in ("cosines", "sines"))

        def run(x: Tensor) -> Tensor:
            heads = x.view(*x.shape[:2], -1, cosines.shape[-1])
            first, second = heads.chunk(2, -1)
            return (heads * cosines + torch.cat((-second, first), -1) * sines).view(x.shape)

        return run

    def _split(self, node: Node) -> Callable[..., Tensor]:
        axis = int(node.attrs.get("axis", 0))
        sizes = [self.graph.values[name].shape[axis] for name in node.outputs]
        return lambda x, *_: x.split(sizes, axis)

    def _slice(self, node: Node) -> Callable[..., Tensor]:
        """A view; steps forwards, limits known."""
        given = [integers(self.graph, node, name, at) for at, name in enumerate(("starts", "ends", "axes", "steps"), 1)]
        starts, ends, axes, steps = given
        if starts is None or ends is None or axes is None or any(step < 1 for step in steps or ()):
            raise Unsupported(f"Slice ('{node.name}') has no rule in the PyTorch executor")
        cut: list[slice] = [slice(None)] * len(self.graph.values[node.inputs[0]].shape)
        for axis, begin, end, step in zip(axes, starts, ends, steps or [1] * len(axes), strict=True):
            cut[axis] = slice(begin, end, step)
        return lambda x, *_: x[tuple(cut)]

    def _gather(self, node: Node) -> Callable[..., Tensor]:
        """Rows of a table by computed numbers, or one or several entries of an axis by constant ones."""
        axis, chosen = int(node.attrs.get("axis", 0)), self.graph.constant(node.inputs[1])
        if chosen is not None and chosen.ndim == 0:
            return lambda x, *_: x.select(axis, int(chosen))
        if axis == 0:
            return lambda x, index: F.embedding(index, x) if x.dim() == 2 else x[index]
        raise Unsupported(f"Gather ('{node.name}') along axis {axis} has no rule in the PyTorch executor")

    def _cast(self, node: Node) -> Callable[..., Tensor]:
        dtype = self.graph.values[node.outputs[0]].dtype
        wanted = self._dtype if dtype.startswith("float") else getattr(torch, dtype)
        return lambda x: x.to(wanted)

    def _resize(self, node: Node) -> Callable[..., Tensor]:
        size, attrs = self.graph.values[node.outputs[0]].shape[2:], node.attrs
        mode, coordinates = (attrs.get(name, "") for name in ("mode", "coordinate_transformation_mode"))
        if mode == "linear" and coordinates in ("half_pixel", "pytorch_half_pixel", "align_corners"):
            aligned = coordinates == "align_corners"
            return lambda x, *_: F.interpolate(x, size, mode="bilinear", align_corners=aligned)
        if mode == "nearest" and coordinates == "asymmetric" and attrs.get("nearest_mode") == "floor":
            return lambda x, *_: F.interpolate(x, size, mode="nearest")
        raise Unsupported(f"Resize ('{node.name}', {mode}, {coordinates}) has no rule in the PyTorch executor")

    def _conv(self, node: Node) -> Callable[..., Tensor]:
        conv: ConvGeometry = node.attrs["conv"]
        matrix = node.attrs["weight"]
        weight = self.tensor(matrix.reshape(matrix.shape[0], conv.in_channels // conv.groups, *conv.kernel))
        bias = None if node.attrs["bias"] is None else self.tensor(node.attrs["bias"])
        return _finished(convolution(conv, weight, bias), node.attrs["epilogue"])


def convolution(conv: ConvGeometry, weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """The convolution alone; pads that differ from side to side are a step of their own."""
    top, left, bottom, right = conv.pads
    even = (top, left) == (bottom, right)
    padding = (top, left) if even else (0, 0)

    def run(x: Tensor) -> Tensor:
        whole = x if even else F.pad(x, (left, right, top, bottom))
        return F.conv2d(whole, weight, bias, conv.stride, padding, conv.dilation, conv.groups)

    return run


def _finished(layer: Callable[[Tensor], Tensor], epilogue: Epilogue) -> Callable[..., Tensor]:
    """The layer, then residual and activation, in place where PyTorch can."""
    if epilogue.activation == "clip":
        low, high = epilogue.low, epilogue.high
        activate: Callable[[Tensor], Tensor] = lambda x: torch.clamp_(x, low, high)  # noqa: E731
    else:
        activate = _ACTIVATIONS[epilogue.activation]

    def run(x: Tensor, *residual: Tensor) -> Tensor:
        y = layer(x)
        return activate(y.add_(residual[0]) if residual else y)

    return run


def _pool(node: Node, pool: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
    attrs = node.attrs
    pads: Sequence[int] = attrs.get("pads") or (0, 0, 0, 0)
    if node.op == "MaxPool" and tuple(pads[:2]) != tuple(pads[2:]):
        top, left, bottom, right = pads
        inner = _pool_of(attrs, F.max_pool2d, (0, 0), {})
        return lambda x: inner(F.pad(x, (left, right, top, bottom), value=-math.inf))
    if tuple(pads[:2]) != tuple(pads[2:]) or attrs.get("ceil_mode", 0):
        raise Unsupported(f"{node.op} ('{node.name}') with uneven pads has no rule in the PyTorch executor")
    further = {} if node.op == "MaxPool" else {"count_include_pad": bool(attrs.get("count_include_pad", 0))}
    return _pool_of(attrs, pool, tuple(pads[:2]), further)


def _pool_of(
    attrs: dict[str, Any], pool: Callable[..., Tensor], pads: Sequence[int], further: dict[str, bool]
) -> Callable[[Tensor], Tensor]:
    """A pool with equal pads on opposite sides."""
    kernel, strides = tuple(attrs["kernel_shape"]), tuple(attrs.get("strides") or (1, 1))
    return lambda x: pool(x, kernel, strides, tuple(pads), **further)


def _layer_norm(node: Node) -> Callable[..., Tensor]:
    epsilon = float(node.attrs.get("epsilon", 1e-5))
    return lambda x, scale, *bias: F.layer_norm(x, x.shape[-1:], scale, bias[0] if bias else None, epsilon)


def _rms_norm(node: Node) -> Callable[..., Tensor]:
    epsilon = float(node.attrs.get("epsilon", 1e-5))
    return lambda x, scale: F.rms_norm(x, x.shape[-1:], scale, epsilon)


def _attention(node: Node) -> Callable[..., Tensor]:
    heads, scale = int(node.attrs["heads"]), float(node.attrs["scale"])

    def split(x: Tensor) -> Tensor:
        batch, tokens, features = x.shape
        return x.view(batch, tokens, heads, features // heads).transpose(1, 2)

    def run(q: Tensor, k: Tensor, v: Tensor, *mask: Tensor) -> Tensor:
        y = F.scaled_dot_product_attention(split(q), split(k), split(v), mask[0] if mask else None, scale=scale)
        return y.transpose(1, 2).reshape(q.shape)

    return run
