"""Images into lanes (BatchTiles) and out of them, by transposing blocks of `lanes` images x `lanes` pixels.

    for block of pixels: for channel: load it from every image, transpose, store a vector per pixel

Requires: float32; Planes with phases (1, 1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sparsetvm.schedules.x86 import tir
from sparsetvm.schedules.x86.epilogue import zero_borders
from sparsetvm.schedules.x86.geometry import zeros_around
from tvm.tirx.script import builder as B

from sparsetvm.core.layout import AnyLayout, BatchTiles, Plain, Planes, PlaneTiles
from sparsetvm.core.target import Target
from sparsetvm.errors import SparseTvmError

# (channel, block of pixels) -> offset of `lanes` neighbouring positions of one image
_Run = Callable[[tir.Expr, tir.Expr], tir.Expr]


def gather_lanes_kernel(
    source: AnyLayout, shape: tuple[int, ...], out: BatchTiles, target: Target, symbol: str
) -> tir.Expr:
    """PrimFunc (X0, X1, ..., Y): slices of `shape`, a batch of images each, as many as fill the lanes of Y."""
    count = out.lanes // shape[0]
    with tir.prim_func(symbol) as builder:
        slices = {f"X{at}": source.physical_shape(shape) for at in range(count)}
        *xs, y = tir.flat_args(**slices, Y=out.physical_shape(()))
        images_to_lanes(xs, y, source, shape, out, target)
    return builder.get()


def images_to_lanes(
    xs: Sequence[tir.Buffer], y: tir.Buffer, source: AnyLayout, shape: tuple[int, ...], out: BatchTiles, target: Target
) -> None:
    """Write Y from slices of `shape` in the layout `source`."""
    images, channels, height, width = shape
    lanes, pixel = out.lanes, out.pixel_stride
    row_stride, runs = _runs(source, shape, lanes)
    zero_borders(y, zeros_around(out), lanes, target.threads)

    def block(tile: tir.Expr, real: int) -> None:
        first = tile * lanes
        rows = [tir.let((first + j) // row_stride) for j in range(real)]
        columns = [tir.let((first + j) % row_stride) for j in range(real)]
        places = [
            tir.let((out.origin + row * out.row_stride + column) * pixel)
            for row, column in zip(rows, columns, strict=True)
        ]
        with B.serial(channels) as channel:
            loaded = [
                tir.vload_lanes(xs[i // images], runs[i % images](channel, tile), lanes, 0, real) for i in range(lanes)
            ]
            vectors = tir.transpose(loaded, lanes)
            for j in range(real):
                if row_stride == width:
                    tir.vstore(y, vectors[j], places[j] + channel * lanes, lanes)
                else:
                    with B.If(columns[j] < width), B.Then():
                        tir.vstore(y, vectors[j], places[j] + channel * lanes, lanes)

    _each_block(height * row_stride, lanes, target.threads, block)


def lanes_to_plain(x: tir.Buffer, y: tir.Buffer, source: BatchTiles, target: Target) -> None:
    """Write Y (lanes, channels, height, width)."""
    lanes, pixels = source.lanes, source.height * source.width

    def block(tile: tir.Expr, real: int) -> None:
        places = []
        for j in range(real):
            at = tile * lanes + j
            position = source.origin + at // source.width * source.row_stride + at % source.width
            places.append(tir.let(position * source.pixel_stride))
        with B.serial(source.channels) as channel:
            loaded = [tir.vload(x, place + channel * lanes, lanes) for place in places]
            loaded += [tir.splat(0.0, lanes)] * (lanes - real)
            for image, vector in enumerate(tir.transpose(loaded, lanes)):
                at = (image * source.channels + channel) * pixels + tile * lanes
                tir.vstore_lanes(y, vector, at, lanes, 0, real)

    _each_block(pixels, lanes, target.threads, block)


def _each_block(positions: int, lanes: int, threads: int, block: Callable[[tir.Expr, int], None]) -> None:
    """Call block(number, positions in it) for blocks of `lanes` positions, the last of which may be short."""
    whole, rest = divmod(positions, lanes)
    if whole:
        with tir.outer(whole, threads) as tile:
            block(tile, lanes)
    if rest:
        block(tir.i32(whole), rest)


def _runs(source: AnyLayout, shape: tuple[int, ...], lanes: int) -> tuple[int, list[_Run]]:
    """(positions from one row of an image to the next, where blocks of positions lie, for each image of a slice)."""
    images, channels, height, width = shape
    if isinstance(source, Plain):
        pixels = height * width
        return width, [
            lambda c, tile, i=i: (i * channels + c) * pixels + tile * lanes  # type: ignore[misc]
            for i in range(images)
        ]
    if isinstance(source, Planes) and source.phases == (1, 1):
        stride, origin = source.plane_stride, source.origin
        return source.row_stride, [
            lambda c, tile, i=i: (i * channels + c) * stride + origin + tile * lanes  # type: ignore[misc]
            for i in range(images)
        ]
    if isinstance(source, PlaneTiles):
        tiles = source.tiles
        return source.row_stride, [
            lambda c, tile, i=i: ((i * tiles + tile) * channels + c) * lanes  # type: ignore[misc]
            for i in range(images)
        ]
    raise SparseTvmError(f"no conversion from {type(source).__name__} to BatchTiles", hint="go through Plain")
