"""Operands and attributes that fit each other: what neither the operator's schema nor ONNX's shape inference compares.

Everything behind the frontend relies on it, since it computes with weights, biases and groups while it rewrites.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sparsetvm.core.graph import Value
from sparsetvm.core.index_operands import counts_back, index_operand, index_sizes
from sparsetvm.errors import ModelError
from sparsetvm.frontend.names import display_shape

_HINT = "check the model with onnx.checker.check_model(path, full_check=True)"
_Operands = Sequence[Value | None]


def check_operands(op: str, inputs: _Operands, outputs: Sequence[Value], attrs: Mapping[str, Any], layer: str) -> None:
    """Raise ModelError naming the layer when operands or attributes do not fit each other."""
    rule = _RULES.get(op)
    problem = rule(inputs, outputs, attrs) if rule is not None else _indices(op, inputs, outputs, attrs)
    if problem:
        raise ModelError(f"not a valid {op}: {problem}", layer=layer, hint=_HINT)


def _shape(inputs: _Operands, at: int) -> tuple[int, ...] | None:
    value = inputs[at] if at < len(inputs) else None
    return None if value is None else value.shape


def _windows(inputs: _Operands, outputs: Sequence[Value], attrs: Mapping[str, Any]) -> str:
    """Windows with a size, a step and a distance on every axis behind the channels."""
    rank = len(_shape(inputs, 0) or ()) - 2
    for name, least, count in (
        ("kernel_shape", 1, rank),
        ("strides", 1, rank),
        ("dilations", 1, rank),
        ("pads", 0, 2 * rank),
    ):
        sizes = attrs.get(name)
        if sizes and (len(sizes) != count or min(sizes) < least):
            return f"{name} {list(sizes)} of an input with {rank} axes behind its channels"
    return ""


def _convolution(
    inputs: _Operands, outputs: Sequence[Value], attrs: Mapping[str, Any], transposed: bool = False
) -> str:
    x, weight, bias = (_shape(inputs, at) for at in range(3))
    if x is None or weight is None or len(x) < 3 or len(x) != len(weight):
        return f"input {display_shape(x or ())} with weights {display_shape(weight or ())}"
    groups = int(attrs.get("group", 1))
    read, made = (weight[0], weight[1] * groups) if transposed else (weight[1] * groups, weight[0])
    if groups < 1 or (read if transposed else made) % groups or x[1] != read:
        return f"weights {display_shape(weight)} of {groups} groups for {x[1]} channels"
    if attrs.get("kernel_shape") and tuple(attrs["kernel_shape"]) != weight[2:]:
        return f"kernel_shape {list(attrs['kernel_shape'])} with weights {display_shape(weight)}"
    if bias is not None and bias != (made,):
        return f"bias {display_shape(bias)} for {made} channels"
    return _windows(inputs, outputs, attrs)


def _transposed(inputs: _Operands, outputs: Sequence[Value], attrs: Mapping[str, Any]) -> str:
    return _convolution(inputs, outputs, attrs, transposed=True)


def _gemm(inputs: _Operands, outputs: Sequence[Value], attrs: Mapping[str, Any]) -> str:
    added = _shape(inputs, 2)
    if added is not None and not _spreads(added, outputs[0].shape):
        return f"C of {display_shape(added)} for an output of {display_shape(outputs[0].shape)}"
    return ""


def _per_channel(inputs: _Operands, outputs: Sequence[Value], attrs: Mapping[str, Any]) -> str:
    x = _shape(inputs, 0)
    if x is None or len(x) < 2:
        return f"input {display_shape(x or ())} has no channels"
    for at in range(1, len(inputs)):
        given = _shape(inputs, at)
        if given is not None and given != (x[1],):
            return f"operand {at + 1} of {display_shape(given)} for {x[1]} channels"
    return ""


def _normalized(inputs: _Operands, outputs: Sequence[Value], attrs: Mapping[str, Any]) -> str:
    x = _shape(inputs, 0) or ()
    axis = int(attrs.get("axis", -1))
    if not -len(x) <= axis < len(x):
        return f"axis {axis} of an input of {display_shape(x)}"
    for at in range(1, len(inputs)):
        given = _shape(inputs, at)
        if given is not None and not _spreads(given, x):
            return f"operand {at + 1} of {display_shape(given)} for an input of {display_shape(x)}"
    return ""


def _indices(op: str, inputs: _Operands, outputs: Sequence[Value], attrs: Mapping[str, Any]) -> str:
    """Constant indices that point beyond what they index; computed ones are looked at when they are used."""
    at = index_operand(op)
    indices, data = (inputs[at], inputs[0]) if at is not None else (None, None)
    if indices is None or data is None:
        return ""
    if np.dtype(indices.dtype).kind not in "iu":
        return f"indices of type {indices.dtype}"
    axis, coordinates = int(attrs.get("axis", 0)), indices.shape[-1] if op.endswith("ND") and indices.shape else 1
    into = f"into an input of {display_shape(data.shape)}"
    if not -len(data.shape) <= axis < len(data.shape) or not 0 < coordinates <= len(data.shape):
        return f"indices {display_shape(indices.shape)}, axis {axis}, {into}"
    sizes = index_sizes(op, attrs, data.shape, indices.shape or (1,), outputs[0].shape)
    if len(sizes) != coordinates or min(sizes) < 1:
        return f"indices {display_shape(indices.shape)} {into}"
    if indices.data is None:
        return ""
    numbers, limits = np.atleast_1d(indices.data), np.array(sizes, np.int64)
    wrong = (numbers >= limits) | (numbers < (-limits if counts_back(op) else 0))
    return f"index {int(numbers[wrong][0])} {into}" if wrong.any() else ""


def _spreads(shape: tuple[int, ...], over: tuple[int, ...]) -> bool:
    """Whether a tensor broadcasts to a shape without changing it."""
    behind = over[len(over) - len(shape) :]
    return len(shape) <= len(over) and all(n in (1, size) for n, size in zip(shape, behind, strict=True))


_RULES: dict[str, Callable[[_Operands, Sequence[Value], Mapping[str, Any]], str]] = {
    "AveragePool": _windows,
    "BatchNormalization": _per_channel,
    "Conv": _convolution,
    "ConvTranspose": _transposed,
    "Gemm": _gemm,
    "InstanceNormalization": _per_channel,
    "LayerNormalization": _normalized,
    "LpPool": _windows,
    "MaxPool": _windows,
    "RMSNormalization": _normalized,
}
