"""Resize and Upsample, where TVM's image operators compute something else.

Resampling is linear and works on each axis by itself: y = M x with a constant matrix M of (output, input) size. For
"nearest" M picks elements, so it is a Gather; for "linear" and "cubic" it is a product with a matrix of few non-zeros.
TVM takes the ratio of the sizes for the scale, knows neither antialiasing nor `axes`, and resizes images only; what it
computes right is left to it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sparsetvm.core.resampling import COORDINATES, Resampling
from sparsetvm.errors import ModelError
from sparsetvm.frontend.parts import Lowered

_TVM_COORDINATES = ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
_HINT = "export the model with another interpolation"


_MAX_SIZE = 1 << 20  # of an axis; indices and weights are made for each element


@dataclass
class _Axis:
    """How one axis is resized: `scale` as the operator has it, which may differ from size_out / size_in."""

    axis: int
    size_in: int
    size_out: int
    scale: float


def upsample(parts: Lowered) -> bool:
    """Upsample is Resize with floor and asymmetric coordinates."""
    scales = parts.attrs.get("scales") if len(parts.inputs) < 2 else parts.data(1)
    if scales is None:
        return False
    shape = parts.value(0).shape
    axes = [
        _Axis(at, n, math.floor(n * float(scale)), float(scale))
        for at, (n, scale) in enumerate(zip(shape, scales, strict=True))
    ]
    parts.attrs["coordinate_transformation_mode"], parts.attrs["nearest_mode"] = "asymmetric", "floor"
    return _resample(parts, [axis for axis in axes if axis.size_out != axis.size_in or axis.scale != 1.0])


def resize(parts: Lowered) -> bool:
    """True when the node was written in other operators; False when TVM computes it right, or it is not static."""
    coordinates = _text(parts, "coordinate_transformation_mode", "half_pixel")
    if parts.opset < 11:
        parts.attrs["coordinate_transformation_mode"], parts.attrs["nearest_mode"] = "asymmetric", "floor"
        coordinates = "asymmetric"
    axes = _axes(parts)
    if axes is None:
        return False
    if coordinates == "tf_crop_and_resize":
        return _crop(parts, axes)
    if _tvm_is_right(parts, axes, coordinates):
        return False
    return _resample(parts, [axis for axis in axes if axis.size_out != axis.size_in or axis.scale != 1.0])


def _crop(parts: Lowered, axes: list[_Axis]) -> bool:
    """Name all axes, as TVM wants them."""
    roi, named = parts.data(1), parts.attrs.get("axes")
    if not named or roi is None:
        return False
    sizes = list(parts.value(0).shape)
    rank = len(sizes)
    region = np.concatenate([np.zeros(rank), np.ones(rank)]).astype(roi.dtype)
    for at, axis in enumerate(axes):
        sizes[axis.axis] = axis.size_out
        region[axis.axis], region[rank + axis.axis] = roi[at], roi[len(axes) + at]
    kept = ("coordinate_transformation_mode", "mode", "nearest_mode", "extrapolation_value", "cubic_coeff_a")
    attrs = {name: parts.attrs[name] for name in kept if name in parts.attrs}
    parts.op("Resize", parts.x, parts.const(region), "", parts.const(sizes), out=parts.y, **attrs)
    return True


def _text(parts: Lowered, name: str, default: str) -> str:
    return str(parts.attrs.get(name, default))


def _axes(parts: Lowered) -> list[_Axis] | None:
    """The axes that are named, with their sizes; None when scales and sizes are computed."""
    shape = parts.value(0).shape
    named = [int(axis) % len(shape) for axis in parts.attrs.get("axes") or range(len(shape))]
    at = 1 if parts.opset < 11 else 2
    scales, sizes = parts.data(at), parts.data(at + 1)
    if scales is not None and scales.size:
        return [
            _Axis(axis, shape[axis], math.floor(shape[axis] * float(scale)), float(scale))
            for axis, scale in zip(named, scales, strict=True)
        ]
    if sizes is None or not sizes.size:
        return None
    ratios = [float(size) / shape[axis] for axis, size in zip(named, sizes, strict=True)]
    policy = _text(parts, "keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return [
            _Axis(axis, shape[axis], int(size), ratio) for axis, size, ratio in zip(named, sizes, ratios, strict=True)
        ]
    ratio = min(ratios) if policy == "not_larger" else max(ratios)
    return [_Axis(axis, shape[axis], math.floor(ratio * shape[axis] + 0.5), ratio) for axis in named]


def _tvm_is_right(parts: Lowered, axes: list[_Axis], coordinates: str) -> bool:
    rank = len(parts.value(0).shape)
    plain = not parts.attrs.get("axes") and not parts.attrs.get("antialias", 0) and parts.opset >= 11
    exact = all(abs(axis.scale * axis.size_in - axis.size_out) < 1e-6 for axis in axes)
    spatial = all(axis.axis >= 2 or (axis.size_in == axis.size_out and axis.scale == 1.0) for axis in axes)
    known = coordinates in _TVM_COORDINATES and all(axis.size_out > 1 for axis in axes if axis.axis >= 2)
    policy = _text(parts, "keep_aspect_ratio_policy", "stretch") == "stretch"
    return plain and exact and spatial and known and policy and rank in (3, 4, 5)


def _resample(parts: Lowered, axes: list[_Axis]) -> bool:
    last = parts.x
    rank = len(parts.value(0).shape)
    mode = _text(parts, "mode", "nearest")
    for axis in axes:
        if not 0 <= axis.size_out <= _MAX_SIZE or not 0 < axis.scale < math.inf:
            what = f"{parts.node.op_type} of axis {axis.axis} from {axis.size_in} to {axis.size_out} elements"
            raise ModelError(what, hint="check the scales or sizes that it was exported with")
    for number, axis in enumerate(axes):
        out = parts.y if number == len(axes) - 1 else ""
        resampling = _resampling(parts, axis)
        if mode == "nearest":
            last = parts.op("Gather", last, parts.const(resampling.nearest()), out=out, axis=axis.axis)
            continue
        matrix = _matrix(parts, axis, resampling.positions(), mode).astype(parts.value(0).dtype)
        to_end = [*(d for d in range(rank) if d != axis.axis), axis.axis]
        if axis.axis == rank - 1:
            last = parts.op("MatMul", last, parts.const(np.ascontiguousarray(matrix.T)), out=out)
            continue
        moved = parts.op("Transpose", last, perm=to_end)
        product = parts.op("MatMul", moved, parts.const(np.ascontiguousarray(matrix.T)))
        last = parts.op("Transpose", product, out=out, perm=[to_end.index(d) for d in range(rank)])
    if not axes:
        parts.op("Identity", parts.x, out=parts.y)
    return True


def _resampling(parts: Lowered, axis: _Axis) -> Resampling:
    kind = _text(parts, "coordinate_transformation_mode", "half_pixel")
    if kind not in COORDINATES:
        raise ModelError(f"Resize with coordinates '{kind}' is not supported", hint=_HINT)
    rounding = _text(parts, "nearest_mode", "round_prefer_floor")
    return Resampling(axis.size_in, axis.size_out, axis.scale, kind, rounding=rounding)


def _matrix(parts: Lowered, axis: _Axis, at: np.ndarray, mode: str) -> np.ndarray:
    """(size_out, size_in): the weight of each element of the input; those beyond an edge are the edge."""
    cubic = mode == "cubic"
    alpha = float(parts.attrs.get("cubic_coeff_a", -0.75))
    # Antialiasing widens the kernel by as much as the axis shrinks.
    stretch = min(axis.scale, 1.0) if parts.attrs.get("antialias", 0) else 1.0
    reach = math.ceil((2 if cubic else 1) / stretch) + 1
    taps = np.floor(at)[:, None].astype(np.int64) + np.arange(-reach, reach + 1)
    distance = np.abs(taps - at[:, None]) * stretch
    weights = _cubic(distance, alpha) if cubic else np.maximum(1.0 - distance, 0.0)
    if parts.attrs.get("exclude_outside", 0):
        weights = np.where((taps < 0) | (taps >= axis.size_in), 0.0, weights)
    weights = weights / weights.sum(axis=1, keepdims=True)
    matrix = np.zeros((axis.size_out, axis.size_in))
    rows = np.broadcast_to(np.arange(axis.size_out)[:, None], taps.shape)
    np.add.at(matrix, (rows, np.clip(taps, 0, axis.size_in - 1)), weights)
    return matrix


def _cubic(d: np.ndarray, a: float) -> np.ndarray:
    """R. Keys, Cubic convolution interpolation for digital image processing, 1981."""
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))
