"""Where a workload's operands lie: the tap list and the strides that all matmul-like x86 kernels share.

A kernel walks "tiles" of `lanes` neighbouring positions. For the tile with pointer x into X and y into Y it computes
    Y[y + m * row_stride] = activation(sum_k W[m, k] * X[x + taps[k]] + ...)      (vectors of `lanes` floats)
so one generator serves products with token tiles, 1x1 and k x k convolution with any stride (through phase planes).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsetvm.core.layout import Planes, Tiled
from sparsetvm.core.workload import Workload


@dataclass(frozen=True)
class TapGeometry:
    """Offsets and strides in floats.

    taps[g]: (k,) offsets of the columns of convolution group g. rows_per_group: output rows of one group.
    batch images of `tiles` tiles each; x0, y0: offset of tile 0 of image 0; *_tile, *_batch: steps.
    row_stride: from output row m to m + 1. mask: (tiles, lanes) bool, None when every lane is real.
    borders: (start, stop) float ranges of every output plane that must be zero (empty for token tiles).
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
    lin, lout = workload.layout_in, workload.layout_out
    if workload.op == "matmul":
        return isinstance(lin, Tiled) and isinstance(lout, Tiled) and lin.lanes == lout.lanes
    conv = workload.conv
    return (
        isinstance(lin, Planes)
        and isinstance(lout, Planes)
        and conv is not None
        and lin.phases == conv.stride
        and lin.row_stride == lout.row_stride
        and lin.lanes == lout.lanes
        and lout.phases == (1, 1)
    )


def tap_geometry(workload: Workload) -> TapGeometry:
    """Geometry of a workload for which `supports_taps` holds."""
    lin, lout = workload.layout_in, workload.layout_out
    if isinstance(lin, Tiled) and isinstance(lout, Tiled):
        taps = (np.arange(workload.k, dtype=np.int64) * lin.lanes,)
        return TapGeometry(
            lin.lanes, lin.tiles, 1, taps, workload.m,
            0, lin.cols * lin.lanes, 0,
            0, lout.cols * lout.lanes, 0,
            lout.lanes, None, (),
        )  # fmt: skip
    if isinstance(lin, Planes) and isinstance(lout, Planes) and workload.conv is not None:
        in_planes, out_planes = lin.physical_shape(())[1], lout.physical_shape(())[1]
        return TapGeometry(
            lout.lanes, lout.tiles, lout.batch, _conv_taps(workload, lin), workload.m // workload.conv.groups,
            lin.origin, lin.lanes, in_planes * lin.plane_stride,
            lout.origin, lout.lanes, out_planes * lout.plane_stride,
            lout.plane_stride, lout.mask(),
            ((0, lout.origin), (lout.origin + lout.tiles * lout.lanes, lout.plane_stride)),
        )  # fmt: skip
    raise TypeError(f"no taps for {type(lin).__name__} -> {type(lout).__name__}")


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
