"""Operators of the dense remainder, as every target's kernels describe them."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
        return broadcast_offset(item, self.batch, shape[:-2], math.prod(shape[-2:]))


class Softmax(msgspec.Struct, frozen=True):
    """softmax(scale * X + mask) over the last axis of X. mask_shape: broadcasts to that of X, last axes equal."""

    shape: tuple[int, ...]
    scale: float = 1.0
    mask_shape: tuple[int, ...] | None = None

    def mask_offset(self, row: Any) -> Any:
        """Where the row of the mask begins that is added to row number `row` (or an expression) of X."""
        mask = self.mask_shape or ()
        return broadcast_offset(row, self.shape[:-1], mask[:-1], self.shape[-1])


def broadcast_offset(item: Any, sizes: Sequence[int], own: Sequence[int], step: int) -> Any:
    """Where entry number `item` (or an expression) of axes `sizes` lies in an operand.

    own: its axes, which broadcast to `sizes`. step: elements of an entry.
    """
    offset: Any = item * 0
    inner = 1
    for at, size in enumerate(reversed(sizes)):
        if at < len(own) and own[-1 - at] != 1:
            offset = offset + item // inner % size * step
            step *= own[-1 - at]
        inner *= size
    return offset


def merged_axes(
    sizes: Sequence[int], operands: Sequence[tuple[Sequence[int], int]]
) -> list[tuple[int, tuple[int, ...]]]:
    """Axes of `sizes`, outermost first: entries, and for each operand the elements from one to the next (0: broadcast).

    operands: the axes of each, which broadcast to `sizes`, and the elements of an entry. Neighbouring axes that every
    operand has, or lacks, alike are one; axes of one entry are none.
    """
    axes: list[tuple[int, tuple[int, ...]]] = []
    steps = [step for _, step in operands]
    for at, size in enumerate(reversed(sizes)):
        own = [axis[-1 - at] if at < len(axis) else 1 for axis, _ in operands]
        if size != 1:
            here = tuple(step if entries != 1 else 0 for step, entries in zip(steps, own, strict=True))
            if axes and [step == 0 for step in axes[0][1]] == [step == 0 for step in here]:
                axes[0] = (axes[0][0] * size, axes[0][1])
            else:
                axes.insert(0, (size, here))
        steps = [step * entries for step, entries in zip(steps, own, strict=True)]
    return axes


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


def channel_table(channels: np.ndarray, parts: Sequence[Planes]) -> np.ndarray:
    """(channels * 4,) int32, for each channel: number of the input, channel in it, how many it has, 0.

    channels: (channels, 2), the first two of these.
    """
    table = np.zeros((len(channels), 4), np.int32)
    table[:, :2] = channels
    table[:, 2] = np.array([part.channels for part in parts], np.int32)[channels[:, 0]]
    return table.reshape(-1)


def check_channels(parts: Sequence[Planes], out: Planes, supported: bool = True) -> None:
    """Raise SparseTvmError where the planes of an input do not lie as those of the output, or not `supported`."""
    wanted = (out.height, out.width, out.pad, out.lanes, out.phases, out.batch)
    for part in parts:
        if not supported or (part.height, part.width, part.pad, part.lanes, part.phases, part.batch) != wanted:
            raise SparseTvmError(f"channels of {part} do not fit into {out}", hint="convert the image first")


def rotary_tables(layout: Tiled, cosines: np.ndarray, sines: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The tables of (tokens, depth) cosines and sines for all images, as their tokens lie: Tiled of `depth` features.

    Those of the sines that turn the first half of a head's features backwards are negative.
    """
    tokens, depth = cosines.shape
    tiled = Tiled(layout.rows, depth, layout.lanes)
    signs = np.where(np.arange(depth) < depth // 2, -1, 1).astype(np.float32)
    images = (layout.rows // tokens, 1)
    first, second = (np.tile(table.astype(np.float32), images) for table in (cosines, sines * signs))
    return tiled.to_physical(first), tiled.to_physical(second)
