"""Pixels of images as tokens, and back: (N, C, H, W) in Planes, (N, H, W, C) in Tiled with a single tile.

    thread: four neighbouring floats of Y, all of one channel

No transposition: both layouts have rows of channels, planes with zero columns between rows of pixels.
"""

from __future__ import annotations

from sparsetvm.schedules.cuda.launch import Launch

from sparsetvm.core.layout import AnyLayout, Planes, Tiled
from sparsetvm.core.target import Target
from sparsetvm.errors import SparseTvmError

_THREADS = 128


def transpose_images_kernel(source: AnyLayout, destination: AnyLayout, target: Target, symbol: str) -> Launch:
    """Launch (X, Y), one of them in Planes without phases, the other in Tiled with one tile, in float32.

    Raises SparseTvmError for other layouts, and where tokens and pixels are not equally many.
    """
    planes, tiled = (source, destination) if isinstance(source, Planes) else (destination, source)
    if not isinstance(planes, Planes) or type(tiled) is not Tiled or planes.phases != (1, 1) or tiled.tiles != 1:
        raise SparseTvmError(f"{source} and {destination} are not rows of channels", hint="transpose a plain tensor")
    if (tiled.rows, tiled.cols) != (planes.batch * planes.height * planes.width, planes.channels) or tiled.lanes % 4:
        raise SparseTvmError(f"{source} and {destination} are not rows of channels of one size")
    scalars: tuple[int, ...] = (
        *(planes.height, planes.width, planes.plane_stride, planes.origin, planes.row_stride, tiled.lanes),
    )
    if isinstance(source, Planes):
        entry, floats, images, scalars = "to_tokens", tiled.lanes, 1, (planes.batch, *scalars)
    else:
        entry, floats, images = "to_images", planes.plane_stride, planes.batch
    grid = (planes.channels, -(-floats // (4 * _THREADS)), images)
    return Launch("tokens.cu", entry, (), grid, _THREADS, scalars=scalars, overlaps=True)
