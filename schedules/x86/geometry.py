"""Where a workload's operands lie: the tap list and the strides that all matmul-like x86 kernels share.

A kernel walks "tiles" of `lanes` neighbouring positions. For the tile with pointer x into X and y into Y it computes
    Y[y + m * row_stride] = activation(sum_k W[m, k] * X[x + taps[k]] + ...)      (vectors of `lanes` floats)
so one generator serves products with token tiles, 1x1 and k x k convolution with any stride (through phase planes, or
through images in lanes, where a stride is only another step from pixel to pixel).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsetvm.core.layout import AnyLayout, BatchTiles, Planes, PlaneTiles, Tiled
from sparsetvm.core.workload import ConvGeometry, Workload
from sparsetvm.rewrite.plane_geometry import depthwise_pad


@dataclass(frozen=True)
class Zeros:
    """(start, stop) float ranges, `count` times, `step` floats apart."""

    ranges: tuple[tuple[int, int], ...]
    count: int
    step: int


@dataclass(frozen=True)
class TapGeometry:
    """Offsets and strides in floats.

    taps[g]: (k,) offsets of the columns of convolution group g. rows_per_group: output rows of one group.
    batch images of `tiles` tiles each; x0, y0: offset of tile 0 of image 0; *_tile, *_batch: steps. With images in
    lanes a tile is one pixel, and what is called an image here is a row of pixels.
    row_stride: from output row m to m + 1. mask: (tiles, lanes) bool, None when every lane is real.
    r0, r_tile, r_batch, residual_stride: the same as y0, y_tile, y_batch, row_stride for the residual.
    zeros: what the kernel must set to zero in Y around the tiles (empty for tiles of tokens).
    columns: the columns of W that `taps` belong to, where they are not in W's order.
    inside: (k, 4) int, for the columns of `taps`, which tiles they read pixels in and not zeros: those of the images
    inside[:, 0] <= image < inside[:, 1] whose number in the image is at least inside[:, 2] and below inside[:, 3].
    None where that is not known, or not needed.
    """

    lanes: int
    tiles: int
    batch: int
    taps: tuple[np.ndarray, ...]
    rows_per_group: int
    x0: int
    x_tile: int
    x_batch: int
    y0: int
    y_tile: int
    y_batch: int
    row_stride: int
    r0: int
    r_tile: int
    r_batch: int
    residual_stride: int
    mask: np.ndarray | None
    zeros: tuple[Zeros, ...]
    columns: np.ndarray | None = None
    inside: np.ndarray | None = None

    def arranged(self, weight: np.ndarray) -> np.ndarray:
        """W (m, k) with its columns in the order of `taps`."""
        return weight if self.columns is None else weight[:, self.columns]

    @property
    def total_tiles(self) -> int:
        return self.batch * self.tiles

    def mask_bits(self) -> np.ndarray:
        """(tiles,) uint16 lane masks, bit i = lane i; one entry of all ones when every lane is real."""
        mask = self.mask if self.mask is not None else np.ones((1, self.lanes), bool)
        bits = np.packbits(np.pad(mask, ((0, 0), (0, 16 - self.lanes))), axis=1, bitorder="little")
        return bits.view(np.uint16).ravel().copy()


def conv_of(workload: Workload) -> ConvGeometry:
    """The convolution that the workload is. Raises TypeError for a product."""
    if workload.conv is None:
        raise TypeError(f"{workload.op} is no convolution")
    return workload.conv


def grid_of(workload: Workload) -> Planes | PlaneTiles:
    """The layout of Y, of images with pixels in the lanes. Raises TypeError for any other."""
    if not isinstance(workload.layout_out, Planes | PlaneTiles):
        raise TypeError(f"{type(workload.layout_out).__name__} holds no images")
    return workload.layout_out


def supports_taps(workload: Workload) -> bool:
    """True when the workload's layouts let a kernel read X in place through taps."""
    lin, lout, residual = workload.layout_in, workload.layout_out, workload.residual_layout
    if workload.op == "matmul":
        return isinstance(lin, Tiled) and isinstance(lout, Tiled) and lin.lanes == lout.lanes and residual == lout
    conv = workload.conv
    if conv is not None and isinstance(lin, BatchTiles):
        same = all(isinstance(layout, BatchTiles) and layout.lanes == lin.lanes for layout in (lout, residual))
        return same and lin.pad >= depthwise_pad(conv)
    if conv is None or not isinstance(lout, Planes | PlaneTiles) or not isinstance(residual, Planes | PlaneTiles):
        return False
    if isinstance(lin, PlaneTiles):
        readable = conv.pointwise
    elif isinstance(lin, Planes):
        readable = lin.phases == conv.stride
    else:
        return False
    grids = {(layout.row_stride, layout.lanes) for layout in (lin, lout, residual)}
    whole = all(layout.phases == (1, 1) for layout in (lout, residual) if isinstance(layout, Planes))
    return readable and whole and len(grids) == 1


def strip_rows(workload: Workload) -> tuple[int, ...]:
    """How many neighbouring rows can be one strip without reading zeros: 1, and what divides the height of blocks."""
    height = workload.pattern.block[0] if workload.pattern.kind == "block" else 1
    of_group = workload.m // (workload.conv.groups if workload.conv else 1)
    return tuple(r for r in (1, 2, 4, 8, 16) if height % r == 0 and of_group % r == 0)


def tap_geometry(workload: Workload) -> TapGeometry:
    """Geometry of a workload for which `supports_taps` holds."""
    lin, lout = workload.layout_in, workload.layout_out
    if isinstance(lin, Tiled) and isinstance(lout, Tiled):
        taps: tuple[np.ndarray, ...] = (np.arange(workload.k, dtype=np.int64) * lin.lanes,)
        y = (0, lout.cols * lout.lanes, 0, lout.lanes)
        return TapGeometry(lin.lanes, lin.tiles, 1, taps, workload.m, 0, lin.cols * lin.lanes, 0, *y, *y, None, ())
    conv = workload.conv
    if conv is not None and isinstance(lin, BatchTiles) and isinstance(lout, BatchTiles):
        return _image_lanes(workload, conv, lin, lout)
    if conv is None or not isinstance(lin, Planes | PlaneTiles) or not isinstance(lout, Planes | PlaneTiles):
        raise TypeError(f"no taps for {type(lin).__name__} -> {type(lout).__name__}")
    if isinstance(lin, Planes):
        taps = _conv_taps(conv, lin.phase_tap)
    else:
        taps = (np.arange(workload.k, dtype=np.int64) * lin.lanes,)
    zeros: tuple[Zeros, ...] = ()
    if isinstance(lout, Planes):
        ranges = ((0, lout.origin), (lout.origin + lout.tiles * lout.lanes, lout.plane_stride))
        zeros = (Zeros(ranges, lout.batch * workload.m, lout.plane_stride),)
    x0, x_tile, x_batch, _ = _image_strides(lin)
    return TapGeometry(
        lout.lanes, lout.tiles, lout.batch, taps, workload.m // conv.groups, x0, x_tile, x_batch,
        *_image_strides(lout), *_image_strides(workload.residual_layout), lout.mask(), zeros,
    )  # fmt: skip


def tap_offset(taps: np.ndarray, table: Any, k: Any) -> Any:
    """Offset of column k, a TIR expression: computed when the taps are evenly spaced, else read from their `table`."""
    steps = np.diff(taps)
    if taps.size == 1 or (steps == steps[0]).all():
        return int(taps[0]) + k * (int(steps[0]) if steps.size else 0)
    return table[k]


def _image_lanes(workload: Workload, conv: ConvGeometry, lin: BatchTiles, lout: BatchTiles) -> TapGeometry:
    """Tiles are pixels; all are one row where no zeros lie between those of Y, the residual and, in steps, X."""
    residual = workload.residual_layout
    if not isinstance(residual, BatchTiles):
        raise TypeError(f"no taps for a residual in {type(residual).__name__}")
    step_y, step_x = conv.stride
    x = (step_x * lin.pixel_stride, step_y * lin.row_stride * lin.pixel_stride)
    steps = (x, *((layout.pixel_stride, layout.row_stride * layout.pixel_stride) for layout in (lout, residual)))
    rows, columns = conv.out_height, conv.out_width
    if all(row == columns * pixel for pixel, row in steps):
        rows, columns = 1, rows * columns
    (x_tile, x_batch), (y_tile, y_batch), (r_tile, r_batch) = steps
    # By pixels, so that a block of columns is a stretch of memory.
    taps = _conv_taps(conv, lin.tap)
    order = np.argsort(taps[0])
    return TapGeometry(
        lout.lanes, columns, rows, tuple(of_group[order] for of_group in taps), workload.m // conv.groups,
        lin.origin * lin.pixel_stride, x_tile, x_batch,
        lout.origin * lout.pixel_stride, y_tile, y_batch, lout.lanes,
        residual.origin * residual.pixel_stride, r_tile, r_batch, residual.lanes, None, zeros_around(lout), order,
        _inside(conv)[order] if rows > 1 else None,
    )  # fmt: skip


def _inside(conv: ConvGeometry) -> np.ndarray:
    """(k, 4): first and last + 1 row of Y, then column, for which a column of W reads a pixel of the image."""
    axes = []
    for axis, (size, out) in enumerate(((conv.in_height, conv.out_height), (conv.in_width, conv.out_width))):
        distance = np.arange(conv.kernel[axis]) * conv.dilation[axis] - conv.pads[axis]
        axes.append((-(distance // conv.stride[axis]), (size - 1 - distance) // conv.stride[axis] + 1, out))
    rows, columns = (np.stack([np.clip(low, 0, out), np.clip(high, 0, out)], 1) for low, high, out in axes)
    window = np.concatenate([np.repeat(rows, len(columns), 0), np.tile(columns, (len(rows), 1))], 1)
    return np.tile(window, (conv.in_channels // conv.groups, 1))


def zeros_around(lout: BatchTiles) -> tuple[Zeros, ...]:
    """The zero pixels before the first row, those behind each row, and those after the last one."""
    if not lout.pad:
        return ()
    pixel, row = lout.pixel_stride, lout.row_stride * lout.pixel_stride
    gap = (lout.origin + lout.width) * pixel
    below = (lout.origin + lout.height * lout.row_stride) * pixel
    return (
        Zeros(((0, pixel),), lout.origin, pixel),
        Zeros(((gap, gap + lout.pad * pixel),), lout.height, row),
        Zeros(((below, below + pixel),), lout.pad * lout.row_stride, pixel),
    )


def _image_strides(layout: AnyLayout) -> tuple[int, int, int, int]:
    """(offset of the first tile, step per tile, per image, per channel) in floats."""
    if isinstance(layout, Planes):
        planes = layout.physical_shape(())[1]
        return layout.origin, layout.lanes, planes * layout.plane_stride, layout.plane_stride
    if isinstance(layout, PlaneTiles):
        tile = layout.channels * layout.lanes
        return 0, tile, layout.tiles * tile, layout.lanes
    raise TypeError(f"{type(layout).__name__} holds no images")


def _conv_taps(conv: ConvGeometry, tap: Callable[[int, int, int], int]) -> tuple[np.ndarray, ...]:
    """tap: offset of a pixel of a channel, by (channel, rows down, columns to the right)."""
    per_group = conv.in_channels // conv.groups
    return tuple(
        np.array(
            [
                tap(
                    group * per_group + channel,
                    ky * conv.dilation[0] - conv.pads[0],
                    kx * conv.dilation[1] - conv.pads[1],
                )
                for channel in range(per_group)
                for ky in range(conv.kernel[0])
                for kx in range(conv.kernel[1])
            ],
            np.int64,
        )
        for group in range(conv.groups)
    )
