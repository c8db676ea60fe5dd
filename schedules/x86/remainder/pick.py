"""Every n-th pixel of images in plane tiles: what a strided 1x1 convolution reads.

    for tile of Y, channel: for lane: Y[tile, channel, lane] = X[place[tile, lane] + channel * lanes]

The places are a table: the pixels of a tile of Y lie in some tiles of X, which have all channels of a pixel 64 bytes
apart. A zero column of Y takes one of X, so no lane needs a mask.

Requires: PlaneTiles of X with zero columns, PlaneTiles of Y.
"""

from __future__ import annotations

import numpy as np
from sparsetvm.schedules.x86 import tir
from tvm.tirx.script import builder as B

from sparsetvm.core.layout import PlaneTiles
from sparsetvm.core.target import Target


def pick_places(source: PlaneTiles, out: PlaneTiles, strides: tuple[int, int]) -> np.ndarray:
    """(tiles * lanes,) int32: floats from the start of an image of X to channel 0 of each place in an image of Y."""
    zero = source.width  # the first column behind the first row
    y, x = np.divmod(np.arange(out.tiles * out.lanes), out.row_stride)
    real = (y < out.height) & (x < out.width)
    position = np.where(real, y * strides[0] * source.row_stride + x * strides[1], zero)
    tile, lane = np.divmod(position, source.lanes)
    return (tile * source.channels * source.lanes + lane).astype(np.int32)


def pick_kernel(source: PlaneTiles, out: PlaneTiles, target: Target, symbol: str) -> tir.Expr:
    """PrimFunc (X, places, Y); places: of `pick_places`."""
    lanes, channels = out.lanes, out.channels
    image = source.tiles * channels * lanes
    with tir.prim_func(symbol) as builder:
        x, places, y = tir.flat_args(
            X=source.physical_shape(()), places=(out.tiles * lanes, "int32"), Y=out.physical_shape(())
        )
        with tir.outer(out.batch * out.tiles, target.threads) as at:
            start, first = at // out.tiles * image, at % out.tiles * lanes
            froms = [B.Bind(start + places[first + lane]) for lane in range(lanes)]
            with B.serial(channels) as channel:
                to = (at * channels + channel) * lanes
                for lane, place in enumerate(froms):
                    B.buffer_store(y, x[place + channel * lanes], [to + lane])
    return builder.get()
