"""Maximum and average pooling, windowed and global, on plain images or Planes.

    thread: one output: combine the pixels of its window; global: a warp or a block: one plane

Pixels outside the image are not read, so the zero borders of Planes are never taken for data.
"""

from __future__ import annotations

import math
from typing import Literal

from sparsetvm.schedules.cuda.launch import Launch
from sparsetvm.schedules.cuda.remainder.images import images_of
from sparsetvm.schedules.operators import Pooling

from sparsetvm.core.layout import AnyLayout
from sparsetvm.core.target import Target

__all__ = ["Pooling", "global_pooling_kernel", "pooling_kernel"]

_THREADS = 128
_WARP_PIXELS = 512  # planes of up to this many pixels are work for one warp


def pooling_kernel(
    source: AnyLayout, destination: AnyLayout, batch: int, pooling: Pooling, target: Target, symbol: str
) -> Launch:
    """Launch (X, Y) of a window pooling; each layout is Plain (NCHW) or Planes with phases (1, 1).

    The number of channels is `pooling.window.in_channels`. Every window must contain a pixel. Everything of a Planes
    output outside the image becomes zero. A maximum drops NaNs.
    """
    w = pooling.window
    x = images_of(source, (batch, w.in_channels, w.in_height, w.in_width))
    y = images_of(destination, (batch, w.in_channels, w.out_height, w.out_width))
    count = y.planes * y.plane_stride
    defines = (
        *(("SP_MAX", int(pooling.kind == "max")), ("SP_KH", w.kernel[0]), ("SP_KW", w.kernel[1])),
        *(("SP_SY", w.stride[0]), ("SP_SX", w.stride[1]), ("SP_DY", w.dilation[0]), ("SP_DX", w.dilation[1])),
    )
    scalars = (
        *(count, x.height, x.width, x.plane_stride, x.origin, x.row_stride, y.plane_stride, y.origin, y.row_stride),
        *(y.height, y.width, y.outside, w.pads[0], w.pads[1], int(pooling.include_pad)),
    )
    return Launch(
        "pooling.cu", "pooling", defines, (-(-count // _THREADS), 1, 1), _THREADS, scalars=scalars, overlaps=True
    )


def global_pooling_kernel(
    source: AnyLayout, shape: tuple[int, ...], kind: Literal["max", "average"], target: Target, symbol: str
) -> Launch:
    """Launch (X, Y): one value per channel, Y plain (batch, channels, 1, 1)."""
    x = images_of(source, shape)
    warps = 1 if math.prod(shape[2:]) <= _WARP_PIXELS else _THREADS // 32
    defines = (("SP_MAX", int(kind == "max")), ("SP_WARPS", warps))
    blocks = -(-x.planes * warps * 32 // _THREADS)
    scalars = (x.planes, x.plane_stride, x.origin, x.row_stride, x.height, x.width)
    return Launch("pooling.cu", "global_pooling", defines, (blocks, 1, 1), _THREADS, scalars=scalars, overlaps=True)
