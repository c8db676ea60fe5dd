"""Conversions between layouts: plain matrices and Tiled, plain images, Planes and phase-split Planes.

    X: physical shape of `source`, Y: physical shape of `destination`

Requires: float32; Planes are read with phases (1, 1) only, since nothing but a strided convolution reads others.
"""

from __future__ import annotations

from sparsetvm.schedules.cuda.launch import Launch
from sparsetvm.schedules.cuda.remainder.images import images_of

from sparsetvm.core.layout import AnyLayout, Plain, Planes, Tiled
from sparsetvm.core.target import Target
from sparsetvm.errors import SparseTvmError

_THREADS = 256


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


def _launch(entry: str, items: int, scalars: tuple[int, ...]) -> Launch:
    return Launch("convert.cu", entry, (), (-(-items // _THREADS), 1, 1), _THREADS, scalars=scalars)


def _transpose(tiles: int, rows: int, columns: int, rows_in: int, rows_out: int) -> Launch:
    grid = (-(-columns // 32), -(-rows // 32), tiles)
    return Launch("convert.cu", "transpose", (), grid, _THREADS, scalars=(rows, columns, rows_in, rows_out))


def _rows_to_tiles(tiled: Tiled) -> Launch:
    return _transpose(tiled.tiles, tiled.lanes, tiled.cols, tiled.rows, tiled.tiles * tiled.cols)


def _tiles_to_rows(tiled: Tiled) -> Launch:
    return _transpose(tiled.tiles, tiled.cols, tiled.lanes, tiled.tiles * tiled.cols, tiled.rows)


def _columns(tiled: Tiled, to_tiles: bool) -> Launch:
    scalars = (tiled.rows, tiled.cols, tiled.lanes, tiled.tiles, int(to_tiles))
    return _launch("columns", tiled.tiles * tiled.cols * tiled.lanes, scalars)


def _to_planes(source: AnyLayout, planes: Planes, shape: tuple[int, ...], shift: tuple[int, int]) -> Launch:
    images, (sy, sx) = images_of(source, shape), planes.phases
    count = planes.batch * sy * sx * planes.channels * planes.plane_stride // 4
    scalars = (
        *(count, planes.channels, images.height, images.width, images.plane_stride, images.origin, images.row_stride),
        *(planes.plane_stride, planes.origin, planes.height, planes.width, planes.row_stride, sy, sx, *shift),
    )
    return _launch("planes", count, scalars)


def _to_images(source: Planes, shape: tuple[int, ...]) -> Launch:
    images = images_of(source, shape)
    count = images.planes * images.height * images.width
    scalars = (count, images.height, images.width, images.plane_stride, images.origin, images.row_stride)
    return _launch("images", count, scalars)
