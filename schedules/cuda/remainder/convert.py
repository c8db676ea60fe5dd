"""Conversions between layouts: plain matrices, Tiled and HalfTiled, plain images, Planes and phase-split Planes.

    X: physical shape of `source`, Y: physical shape of `destination`

Requires: X in float32; Planes are read with phases (1, 1) only, since nothing but a strided convolution reads others.
"""

from __future__ import annotations

import math

from sparsetvm.schedules.cuda.launch import Launch
from sparsetvm.schedules.cuda.remainder.cast import cast_kernel
from sparsetvm.schedules.cuda.remainder.images import images_of

from sparsetvm.core.layout import AnyLayout, Plain, Planes, Tiled, narrows
from sparsetvm.core.target import Target
from sparsetvm.errors import SparseTvmError

_THREADS = 256
_SQUARE = 16  # rows of X that a block transposes (kRows)


def convert_kernel(
    source: AnyLayout,
    destination: AnyLayout,
    shape: tuple[int, ...],
    target: Target,
    symbol: str,
    *,
    transposed: bool = False,
    shift: tuple[int, int] = (0, 0),
) -> Launch:
    """Launch (X, Y) that copies a tensor of the logical `shape` from one layout to the other.

    transposed: the plain side is the [cols][rows] matrix of a Tiled layout and `shape` is (cols, rows).
    shift: (oy, ox) for Planes destinations: pixel (y, x) of the destination, counted over all phases, is image pixel
        (y + oy, x + ox), zero where that lies outside the image.
    Rows of a Tiled destination past the end become zero, as does all of Planes outside the image.
    Raises SparseTvmError for a pair of layouts that no kernel converts.
    """
    if isinstance(source, Tiled) and narrows(source, destination):
        return cast_kernel(math.prod(source.physical_shape(shape)), True, target, symbol)
    if source.half or (transposed and destination.half):
        raise SparseTvmError(f"no conversion from {source} to {destination}", hint="round to float16 last")
    if isinstance(source, Plain) and isinstance(destination, Tiled):
        return _columns(destination, True) if transposed else _rows_to_tiles(destination)
    if isinstance(source, Tiled) and isinstance(destination, Plain):
        return _columns(source, False) if transposed else _tiles_to_rows(source)
    if isinstance(source, Plain | Planes) and isinstance(destination, Planes):
        return _to_planes(source, destination, shape, shift)
    if isinstance(source, Planes) and isinstance(destination, Plain):
        return _to_images(source, shape)
    raise SparseTvmError(
        f"no conversion from {type(source).__name__} to {type(destination).__name__}", hint="go through Plain"
    )


def _transpose(tiles: int, rows: int, columns: int, rows_in: int, rows_out: int, half: bool = False) -> Launch:
    grid = (-(-columns // 32), -(-rows // _SQUARE), tiles)
    scalars = (rows, columns, rows_in, rows_out)
    defines = (("SP_HALF", int(half)),)
    return Launch("convert.cu", "transpose", defines, grid, _THREADS, scalars=scalars, overlaps=True)


def _rows_to_tiles(tiled: Tiled) -> Launch:
    return _transpose(tiled.tiles, tiled.lanes, tiled.cols, tiled.rows, tiled.tiles * tiled.cols, tiled.half)


def _tiles_to_rows(tiled: Tiled) -> Launch:
    return _transpose(tiled.tiles, tiled.cols, tiled.lanes, tiled.tiles * tiled.cols, tiled.rows)


def _columns(tiled: Tiled, to_tiles: bool) -> Launch:
    scalars = (tiled.rows, tiled.cols, tiled.lanes, tiled.tiles, int(to_tiles))
    blocks = -(-tiled.tiles * tiled.cols * tiled.lanes // _THREADS)
    return Launch("convert.cu", "columns", (), (blocks, 1, 1), _THREADS, scalars=scalars, overlaps=True)


def _to_planes(source: AnyLayout, planes: Planes, shape: tuple[int, ...], shift: tuple[int, int]) -> Launch:
    images, (sy, sx) = images_of(source, shape), planes.phases
    scalars = (
        *(images.height, images.width, images.plane_stride, images.origin, images.row_stride),
        *(planes.plane_stride, planes.origin, planes.height, planes.width, planes.row_stride, *shift),
    )
    threads, pieces = _pieces(planes.plane_stride // 4)
    grid = (planes.channels, pieces, planes.batch * sy * sx)
    return Launch("convert.cu", "planes", (("SP_SY", sy), ("SP_SX", sx)), grid, threads, scalars=scalars, overlaps=True)


def _to_images(source: Planes, shape: tuple[int, ...]) -> Launch:
    images = images_of(source, shape)
    threads, pieces = _pieces(images.height * images.width)
    scalars = (images.height, images.width, images.plane_stride, images.origin, images.row_stride)
    return Launch("convert.cu", "images", (), (images.planes, pieces, 1), threads, scalars=scalars, overlaps=True)


def _pieces(items: int) -> tuple[int, int]:
    """Threads of a block and blocks for the items of a plane: no more threads than a small plane has work for."""
    threads = min(_THREADS, -(-items // 32) * 32)
    return threads, -(-items // threads)
