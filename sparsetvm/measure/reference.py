"""What a workload must compute, in float64 from the pruned weights: a candidate's time counts only when it agrees.

The relative L2 error must not exceed that of the candidate's arithmetic (core/arithmetic.py), 1e-5 for float32; one
wrong element in 200,000 already gives 2e-3.
The whole of a large Y hides one small weight with the wrong sign or in the wrong column. So each row (output feature or
channel) must agree by itself, to 4e-7 * sqrt(non-zeros of the row) of its terms and never less than half the tolerance.
A ReLU hides what happens to a row while the row is negative. Among many positions it is not, for few there are several
inputs, each also negated and larger.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import msgspec
import numpy as np
import scipy.sparse
import scipy.special

from sparsetvm.core.arithmetic import TOLERANCES
from sparsetvm.core.layout import Layout, Plain, Planes, PlaneTiles, Tiled
from sparsetvm.core.workload import ConvGeometry, Epilogue, Workload

TOLERANCE = TOLERANCES["float32"]
_POSITIONS = 16
_SCALES = (1.0, -1.0, 4.0, -4.0)
_ROW_PER_TERM = 4e-7
# Beyond these a sample of positions is compared, so that a reference costs about 50 ms on one core.
_SPARSE_FLOPS = 60_000_000
_DENSE_FLOPS = 400_000_000
_GATHERED = 3_000_000
_EDGE = 64  # positions at each end that a sample always holds: tails are where kernels go wrong


@dataclass(frozen=True)
class Reference:
    """Inputs in their physical layouts, and what Y must be at some positions.

    x, residual: of the type that their layouts store. positions: sorted indices into the n positions. expected: float64
    (m, len(positions)).
    row_scales: float64 (m,), L2 norm of the terms and the result of each row. row_terms: its non-zeros.
    """

    workload: Workload
    x: np.ndarray
    residual: np.ndarray | None
    positions: np.ndarray
    expected: np.ndarray
    row_scales: np.ndarray
    row_terms: np.ndarray

    def error(self, physical: np.ndarray) -> float:
        """Relative L2 error of a physical Y at the compared positions; infinity when any value of Y is not finite."""
        if not np.isfinite(physical).all():
            return float("inf")
        norm = float(np.linalg.norm(self.expected))
        return float(np.linalg.norm(self._difference(physical))) / max(norm, 1e-30)

    def _difference(self, physical: np.ndarray) -> np.ndarray:
        return np.asarray(_by_position(self.workload, physical)[self.positions].T - self.expected)

    def fault(self, physical: np.ndarray, tolerance: float = TOLERANCE) -> str:
        """What is wrong, "" if nothing: values never written, rows that are off, borders of planes that are not 0."""
        bad = int(np.count_nonzero(~np.isfinite(physical)))
        if bad:
            return f"{bad} of {physical.size} output values were never written or are not finite"
        limits = self.row_scales * np.maximum(tolerance / 2, _ROW_PER_TERM * np.sqrt(self.row_terms))
        off = np.linalg.norm(self._difference(physical), axis=1) > limits
        if off.any():
            return f"{np.count_nonzero(off)} of {off.size} rows are wrong, the first is row {np.argmax(off)}"
        layout = self.workload.layout_out
        if isinstance(layout, Planes):
            border = ~_image_mask(layout)
            dirty = int(np.count_nonzero(physical.reshape(-1, layout.plane_stride)[:, border]))
        elif isinstance(layout, PlaneTiles):
            tiles = physical.reshape(layout.physical_shape(())).transpose(0, 2, 1, 3)
            dirty = int(np.count_nonzero(tiles[:, :, ~layout.mask()]))
        else:
            return ""
        if dirty:
            return f"{dirty} values outside the image are not zero; the next convolution reads them as padding"
        return ""


def inputs_of(reference: Reference) -> list[np.ndarray]:
    """X, and the residual where there is one: what a kernel is given first."""
    return [array for array in (reference.x, reference.residual) if array is not None]


def make_reference(
    workload: Workload, weight: np.ndarray, bias: np.ndarray | None, seed: int = 0, x: np.ndarray | None = None
) -> Reference:
    """Random standard normal inputs and the float64 result. `weight` is (m, k), `bias` (m,) or None.

    x: float32 of the shape `input_shape` to take instead of a random X.
    """
    rng = np.random.default_rng(seed)
    shape_x, shape_y = input_shape(workload), output_shape(workload)
    x = rng.standard_normal(shape_x).astype(np.float32) if x is None else x
    residual = rng.standard_normal(shape_y).astype(np.float32) if workload.epilogue.residual else None
    positions = _positions(workload, weight, rng)
    total = _sums(workload, weight, x, positions)
    terms = np.sqrt(np.square(weight.astype(np.float64)).sum(axis=1)) * math.sqrt(np.square(x, dtype=np.float64).mean())
    if workload.epilogue.bias and bias is not None:
        total += bias.astype(np.float64)[:, None]
        terms += np.abs(bias)
    if residual is not None:
        total += _matrix(workload, residual)[positions].T
        terms += 1.0
    expected = activate(total, workload.epilogue)
    scale = math.sqrt(len(positions)) * terms + np.linalg.norm(expected, axis=1)
    return Reference(
        workload,
        to_physical(workload.layout_in, x),
        None if residual is None else to_physical(workload.residual_layout, residual),
        positions,
        expected,
        scale,
        np.count_nonzero(weight, axis=1),
    )


def make_references(
    workload: Workload, weight: np.ndarray, bias: np.ndarray | None, seed: int = 0
) -> tuple[Reference, ...]:
    """As many references as it takes to see each row at work: one for 16 positions and more, 16 for a single one.

    The X of the first, which is timed, has as many zeros as the workload says; where that is more than none, others of
    few positions have none, and one has nothing else.
    """
    first = random_input(workload, seed)
    if workload.n >= _POSITIONS:
        return (make_reference(workload, weight, bias, seed, first if workload.active < 1.0 else None),)
    inputs = [first] + [
        random_input(msgspec.structs.replace(workload, activation_density=msgspec.UNSET), seed + number)
        for number in range(1, max(-(-_POSITIONS // (len(_SCALES) * workload.n)), 1 if workload.active == 1.0 else 2))
    ]
    if workload.active < 1.0:
        inputs.append(np.zeros_like(first))
    return tuple(
        make_reference(workload, weight, bias, seed + number, np.float32(scale) * x)
        for number, x in enumerate(inputs)
        for scale in _SCALES
    )


def random_input(workload: Workload, seed: int) -> np.ndarray:
    """Standard normal float32 X of the workload's activation density."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(input_shape(workload)).astype(np.float32)
    if workload.active < 1.0:
        x *= rng.random(x.shape) < workload.active
    return x


def input_shape(workload: Workload) -> tuple[int, ...]:
    """Logical shape of X: (n, k) for matmul, (batch, channels, height, width) for conv2d."""
    conv = workload.conv
    if conv is None:
        return workload.n, workload.k
    return _batch(workload, conv), conv.in_channels, conv.in_height, conv.in_width


def output_shape(workload: Workload) -> tuple[int, ...]:
    """Logical shape of Y: (n, m) for matmul, (batch, m, height, width) for conv2d."""
    conv = workload.conv
    if conv is None:
        return workload.n, workload.m
    return _batch(workload, conv), workload.m, conv.out_height, conv.out_width


def to_physical(layout: Layout, array: np.ndarray) -> np.ndarray:
    """The array as the layout stores it."""
    if isinstance(layout, Tiled | Planes | PlaneTiles):
        physical: np.ndarray = layout.to_physical(array.astype(np.float16) if layout.half else array)
        return physical
    if isinstance(layout, Plain):
        return np.ascontiguousarray(array)
    raise TypeError(f"unknown layout {type(layout).__name__}")


def to_logical(layout: Layout, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The logical array of `shape` that a physical one stores."""
    if isinstance(layout, Tiled | Planes | PlaneTiles):
        logical: np.ndarray = layout.to_logical(array, shape)
        return logical
    if isinstance(layout, Plain):
        return array.reshape(shape)
    raise TypeError(f"unknown layout {type(layout).__name__}")


def activate(total: np.ndarray, epilogue: Epilogue) -> np.ndarray:
    """The epilogue's activation in float64."""
    kind = epilogue.activation
    if kind == "relu":
        return np.asarray(np.maximum(total, 0.0))
    if kind == "clip":
        return np.asarray(np.clip(total, epilogue.low, epilogue.high))
    if kind == "gelu":
        return np.asarray(total * 0.5 * (1.0 + scipy.special.erf(total / np.sqrt(2.0))))
    if kind == "gelu_tanh":
        return np.asarray(total * 0.5 * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (total + 0.044715 * total**3))))
    if kind == "sigmoid":
        return np.asarray(scipy.special.expit(total))
    if kind == "silu":
        return np.asarray(total * scipy.special.expit(total))
    if kind == "hard_swish":
        return np.asarray(total * np.clip(total / 6.0 + 0.5, 0.0, 1.0))
    return total


def _batch(workload: Workload, conv: ConvGeometry) -> int:
    return workload.n // (conv.out_height * conv.out_width)


def _matrix(workload: Workload, y: np.ndarray) -> np.ndarray:
    """A logical Y as (positions, m)."""
    return y if workload.conv is None else np.moveaxis(y, 1, -1).reshape(workload.n, workload.m)


def _by_position(workload: Workload, physical: np.ndarray) -> np.ndarray:
    return _matrix(workload, to_logical(workload.layout_out, physical, output_shape(workload)))


def _image_mask(layout: Planes) -> np.ndarray:
    """Boolean (plane_stride,): True where a float of a plane is a pixel."""
    mask = np.zeros(layout.plane_stride, bool)
    pixels = layout.mask().reshape(-1)
    mask[layout.origin : layout.origin + pixels.size] = pixels
    return mask


def _positions(workload: Workload, weight: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """All positions, or as many as the limits at the top allow: both ends and a spread of the rest."""
    n = workload.n
    sparse = _is_sparse(weight)
    groups = 1 if workload.conv is None else workload.conv.groups
    work = 2 * (int(np.count_nonzero(weight)) if sparse else weight.size)
    affordable = min(
        (_SPARSE_FLOPS if sparse else _DENSE_FLOPS) // max(work, 1), _GATHERED // max(groups * workload.k, 1)
    )
    count = max(affordable, 4 * _EDGE)
    if count >= n:
        return np.arange(n)
    # One of each of equally long stretches: a wrong tile is missed only where a stretch is longer than the tile.
    bounds = np.linspace(_EDGE, n - _EDGE, count - 2 * _EDGE + 1).astype(np.int64)
    inner = rng.integers(bounds[:-1], bounds[1:])
    return np.concatenate([np.arange(_EDGE), inner, np.arange(n - _EDGE, n)])


def _is_sparse(weight: np.ndarray) -> bool:
    return bool(np.count_nonzero(weight) < 0.3 * weight.size)


def _sums(workload: Workload, weight: np.ndarray, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """sum_k W[m, k] * X[tap(k) + p] as float64 (m, len(positions))."""
    wide = weight.astype(np.float64)
    if workload.conv is None:
        return _product(wide, x[positions].astype(np.float64).T)
    conv = workload.conv
    rows = workload.m // conv.groups
    patches = _Patches(x.astype(np.float64), conv, positions)
    parts = [_product(wide[g * rows : (g + 1) * rows], patches.group(g)) for g in range(conv.groups)]
    return np.concatenate(parts)


def _product(weight: np.ndarray, x: np.ndarray) -> np.ndarray:
    if _is_sparse(weight):
        return np.asarray(scipy.sparse.csr_array(weight) @ np.ascontiguousarray(x))
    return np.asarray(weight @ x)


class _Patches:
    """im2col at some positions of the output grid."""

    def __init__(self, x: np.ndarray, conv: ConvGeometry, positions: np.ndarray) -> None:
        top, left, bottom, right = conv.pads
        padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
        _, channels, height, width = padded.shape
        self._conv = conv
        self._flat = padded.reshape(-1)
        self._plane = height * width
        image, pixel = np.divmod(positions, conv.out_height * conv.out_width)
        y, col = np.divmod(pixel, conv.out_width)
        self._at = image * channels * self._plane + y * conv.stride[0] * width + col * conv.stride[1]
        taps = [(ky * conv.dilation[0]) * width + kx * conv.dilation[1] for ky, kx in np.ndindex(conv.kernel)]
        self._taps = np.array(taps, np.int64)

    def group(self, group: int) -> np.ndarray:
        """(k, positions) of one group, k = (channel, ky, kx)."""
        channels = self._conv.in_channels // self._conv.groups
        planes = (np.arange(channels, dtype=np.int64) + group * channels) * self._plane
        offsets = (planes[:, None] + self._taps[None, :]).reshape(-1)
        return np.asarray(np.take(self._flat, offsets[:, None] + self._at[None, :]))
