"""Where a workload's operands lie: the tap list and the strides that all matmul-like x86 kernels share.

A kernel walks "tiles" of `lanes` neighbouring positions. For the tile with pointer x into X and y into Y it computes
    Y[y + m * row_stride] = activation(sum_k W[m, k] * X[x + taps[k]] + ...)      (vectors of `lanes` floats)
so one generator serves products with token tiles, 1x1 and k x k convolution with any stride (through phase planes).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsetvm.core.layout import AnyLayout, Planes, PlaneTiles, Tiled
from sparsetvm.core.workload import Workload


@dataclass(frozen=True)
class TapGeometry:
    """Offsets and strides in floats.

    taps[g]: (k,) offsets of the columns of convolution group g. rows_per_group: output rows of one group.
    batch images of `tiles` tiles each; x0, y0: offset of tile 0 of image 0; *_tile, *_batch: steps.
    row_stride: from output row m to m + 1. mask: (tiles, lanes) bool, None when every lane is real.
    r0, r_tile, r_batch, residual_stride: the same as y0, y_tile, y_batch, row_stride for the residual.
    borders: (start, stop) float ranges of every output plane that must be zero (empty for tiles).
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
    borders: tuple[tuple[int, int], ...]

    @property
    def total_tiles(self) -> int:
        return self.batch * self.tiles

    def mask_bits(self) -> np.ndarray:
        """(tiles,) uint16 lane masks, bit i = lane i; one entry of all ones when every lane is real."""
        mask = self.mask if self.mask is not None else np.ones((1, self.lanes), bool)
        bits = np.packbits(np.pad(mask, ((0, 0), (0, 16 - self.lanes))), axis=1, bitorder="little")
        return bits.view(np.uint16).ravel().copy()


def supports_taps(workload: Workload) -> bool:
    """True when the workload's layouts let a kernel read X in place through taps."""
    lin, lout, residual = workload.layout_in, workload.layout_out, workload.residual_layout
    if workload.op == "matmul":
        return isinstance(lin, Tiled) and isinstance(lout, Tiled) and lin.lanes == lout.lanes and residual == lout
    conv = workload.conv
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
    if conv is None or not isinstance(lin, Planes | PlaneTiles) or not isinstance(lout, Planes | PlaneTiles):
        raise TypeError(f"no taps for {type(lin).__name__} -> {type(lout).__name__}")
    if isinstance(lin, Planes):
        taps = _conv_taps(workload, lin)
    else:
        taps = (np.arange(workload.k, dtype=np.int64) * lin.lanes,)
    borders: tuple[tuple[int, int], ...] = ()
    if isinstance(lout, Planes):
        borders = ((0, lout.origin), (lout.origin + lout.tiles * lout.lanes, lout.plane_stride))
    x0, x_tile, x_batch, _ = _image_strides(lin)
    return TapGeometry(
        lout.lanes, lout.tiles, lout.batch, taps, workload.m // conv.groups, x0, x_tile, x_batch,
        *_image_strides(lout), *_image_strides(workload.residual_layout), lout.mask(), borders,
    )  # fmt: skip


def _image_strides(layout: AnyLayout) -> tuple[int, int, int, int]:
    """(offset of the first tile, step per tile, per image, per channel) in floats."""
    if isinstance(layout, Planes):
        planes = layout.physical_shape(())[1]
        return layout.origin, layout.lanes, planes * layout.plane_stride, layout.plane_stride
    if isinstance(layout, PlaneTiles):
        tile = layout.channels * layout.lanes
        return 0, tile, layout.tiles * tile, layout.lanes
    raise TypeError(f"{type(layout).__name__} holds no images")


def _conv_taps(workload: Workload, planes: Planes) -> tuple[np.ndarray, ...]:
    conv = workload.conv
    if conv is None:
        raise TypeError("a convolution workload has its geometry")
    per_group = conv.in_channels // conv.groups
    return tuple(
        np.array(
            [
                planes.phase_tap(
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
