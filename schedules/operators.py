"""Operators of the dense remainder, as every target's kernels describe them."""

from __future__ import annotations

import math
from typing import Any, Literal

import msgspec
import numpy as np

from sparsetvm.core.layout import Planes, Tiled
from sparsetvm.core.workload import ConvGeometry
from sparsetvm.errors import SparseTvmError
from sparsetvm.rewrite.plane_geometry import depthwise_pad


class Attention(msgspec.Struct, frozen=True):
    """softmax(scale * Q K^T + mask) V for `heads` heads of `head_dim` features, `seq` queries and keys.

    mask_shape: of the additive mask (1 or batch, 1 or heads, 1 or seq, seq), row-major; None without a mask.
    """

    batch: int
    seq: int
    heads: int
    head_dim: int
    scale: float
    mask_shape: tuple[int, ...] | None = None

    def layout(self, lanes: int) -> Tiled:
        """Layout of Q, K, V and the output."""
        return Tiled(self.batch * self.seq, self.heads * self.head_dim, lanes)

    @property
    def mask_fits(self) -> bool:
        """Whether there is no mask, or one that the kernels can broadcast."""
        if self.mask_shape is None:
            return True
        *leading, keys = self.mask_shape
        broadcast = all(d in (1, full) for d, full in zip(leading, (self.batch, self.heads, self.seq), strict=False))
        return len(leading) == 3 and broadcast and keys == self.seq


class BatchMatmul(msgspec.Struct, frozen=True):
    """The product of two computed tensors (..., m, k) and (..., k, n), whose leading axes broadcast (ONNX's MatMul)."""

    a_shape: tuple[int, ...]
    b_shape: tuple[int, ...]

    @property
    def m(self) -> int:
        return self.a_shape[-2]

    @property
    def k(self) -> int:
        return self.a_shape[-1]

    @property
    def n(self) -> int:
        return self.b_shape[-1]

    @property
    def batch(self) -> tuple[int, ...]:
        """Leading axes of the result."""
        return tuple(int(d) for d in np.broadcast_shapes(self.a_shape[:-2], self.b_shape[:-2]))

    @property
    def out_shape(self) -> tuple[int, ...]:
        return (*self.batch, self.m, self.n)

    def offset(self, item: Any, shape: tuple[int, ...]) -> Any:
        """Where the matrix of an operand of this shape begins that `item` (or an expression) of the batch reads."""
        strides, step = [], math.prod(shape[-2:])
        for size in reversed(shape[:-2]):
            strides.append(0 if size == 1 else step)
            step *= size
        offset: Any = item * 0
        inner = 1
        for size, stride in zip(reversed(self.batch), strides, strict=False):
            offset = offset + item // inner % size * stride
            inner *= size
        return offset


class Pooling(msgspec.Struct, frozen=True):
    """A pooling window; `window` gives kernel, stride, pads, dilation, channels and input size (groups do not matter).

    include_pad: average over the whole window, pad columns too (count_include_pad of ONNX).
    """

    kind: Literal["max", "average"]
    window: ConvGeometry
    include_pad: bool = False

    @property
    def identity(self) -> float:
        """What does not change the result of combining."""
        return -math.inf if self.kind == "max" else 0.0

    def rows(self, out_row: int) -> list[int]:
        """Input rows inside the image that output row `out_row` reads."""
        return self._inside(0, out_row, self.window.in_height)

    def columns(self, out_column: int) -> list[int]:
        """Input columns inside the image that output column `out_column` reads."""
        return self._inside(1, out_column, self.window.in_width)

    def _inside(self, axis: int, position: int, size: int) -> list[int]:
        w = self.window
        first = position * w.stride[axis] - w.pads[axis]
        return [at for k in range(w.kernel[axis]) if 0 <= (at := first + k * w.dilation[axis]) < size]


def pack_depthwise(weight: np.ndarray, bias: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """(channels * kh * kw,) weights and (channels,) bias from (channels, [1,] kh, kw) weights; no bias means zeros."""
    channels = weight.shape[0]
    start = np.zeros(channels) if bias is None else bias
    return np.ascontiguousarray(weight.reshape(-1), np.float32), np.ascontiguousarray(start, np.float32)


def check_depthwise(source: Planes, destination: Planes, conv: ConvGeometry) -> None:
    """Raise SparseTvmError when a depthwise convolution cannot read and write these layouts through taps."""
    fits = (
        source.phases == (1, 1)
        and destination.phases == (1, 1)
        and conv.groups == conv.in_channels == source.channels == destination.channels
        and (source.height, source.width) == (conv.in_height, conv.in_width)
        and source.batch == destination.batch
        and (destination.height, destination.width) == (conv.out_height, conv.out_width)
        and source.pad >= depthwise_pad(conv)
    )
    if not fits:
        raise SparseTvmError(
            f"depthwise convolution {conv} cannot read {source} and write {destination}",
            hint=f"convert the input to Planes with phases (1, 1) and a pad of at least {depthwise_pad(conv)}",
        )
