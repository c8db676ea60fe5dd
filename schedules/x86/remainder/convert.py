"""Conversions between layouts: plain matrices and Tiled, plain images, Planes, phase-split Planes and BatchTiles.

    X: physical shape of `source`, Y: physical shape of `destination`

Requires: float32; Planes are read with phases (1, 1) only, since nothing but a strided convolution reads others.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

from sparsetvm.schedules.x86 import tir
from sparsetvm.schedules.x86.remainder.batch_tiles import images_to_lanes, lanes_to_plain
from sparsetvm.schedules.x86.remainder.images import Images, fill
from tvm import tirx
from tvm.tirx.script import builder as B

from sparsetvm.core.layout import AnyLayout, BatchTiles, Plain, Planes, Tiled
from sparsetvm.core.target import Target
from sparsetvm.errors import SparseTvmError

_SHUFFLED_PHASES = 4  # more column phases than this are gathered one float at a time


def convert_kernel(
    source: AnyLayout,
    destination: AnyLayout,
    shape: tuple[int, ...],
    target: Target,
    symbol: str,
    *,
    transposed: bool = False,
    shift: tuple[int, int] = (0, 0),
) -> tir.Expr:
    """PrimFunc (X, Y) that copies a tensor of the logical `shape` from one layout to the other.

    transposed: the plain side is the [cols][rows] matrix of a Tiled layout and `shape` is (cols, rows).
    shift: (oy, ox) for Planes destinations: pixel (y, x) of the destination, counted over all phases, is image pixel
        (y + oy, x + ox), zero where that lies outside the image.
    Rows of a Tiled destination past the end become zero, as does all of Planes outside the image.
    Raises SparseTvmError for a pair of layouts that no kernel converts.
    """
    with tir.prim_func(symbol) as builder:
        x, y = tir.flat_args(X=source.physical_shape(shape), Y=destination.physical_shape(shape))
        if isinstance(source, Plain) and isinstance(destination, Tiled):
            (_columns_to_tiles if transposed else _rows_to_tiles)(x, y, destination, target)
        elif isinstance(source, Tiled) and isinstance(destination, Plain):
            (_tiles_to_columns if transposed else _tiles_to_rows)(x, y, source, target)
        elif isinstance(destination, BatchTiles):
            images_to_lanes([x], y, source, shape, destination, target)
        elif isinstance(source, BatchTiles) and isinstance(destination, Plain):
            lanes_to_plain(x, y, source, target)
        elif isinstance(source, (Plain, Planes)) and isinstance(destination, Planes):
            _images_to_planes(x, y, Images(source, shape, target.lanes), destination, target, shift)
        elif isinstance(source, Planes) and isinstance(destination, Plain):
            _planes_to_plain(x, y, Images(source, shape, target.lanes), target)
        else:
            raise SparseTvmError(
                f"no conversion from {type(source).__name__} to {type(destination).__name__}",
                hint="go through Plain",
            )
    return builder.get()


def _rows_to_tiles(x: tir.Buffer, y: tir.Buffer, tiled: Tiled, target: Target) -> None:
    def block(tile: tir.Expr, rows: int, col: tir.Expr, cols: int) -> None:
        lanes, first = tiled.lanes, tile * tiled.lanes
        loaded = [
            tir.vload_lanes(x, (first + r) * tiled.cols + col, lanes, 0, cols if r < rows else 0) for r in range(lanes)
        ]
        for c, vector in enumerate(tir.transpose(loaded, lanes)[:cols]):
            tir.vstore(y, vector, (tile * tiled.cols + col + c) * lanes, lanes)

    _each_block(tiled, target, block)


def _tiles_to_rows(x: tir.Buffer, y: tir.Buffer, tiled: Tiled, target: Target) -> None:
    def block(tile: tir.Expr, rows: int, col: tir.Expr, cols: int) -> None:
        lanes, first = tiled.lanes, tile * tiled.lanes
        loaded = [tir.vload(x, (tile * tiled.cols + col + c) * lanes, lanes) for c in range(cols)]
        loaded += [tir.splat(0.0, lanes)] * (lanes - cols)
        for r, vector in enumerate(tir.transpose(loaded, lanes)[:rows]):
            tir.vstore_lanes(y, vector, (first + r) * tiled.cols + col, lanes, 0, cols)

    _each_block(tiled, target, block)


def _columns_to_tiles(x: tir.Buffer, y: tir.Buffer, tiled: Tiled, target: Target) -> None:
    def column(tile: tir.Expr, rows: int, col: tir.Expr) -> None:
        loaded = tir.vload_lanes(x, col * tiled.rows + tile * tiled.lanes, tiled.lanes, 0, rows)
        tir.vstore(y, loaded, (tile * tiled.cols + col) * tiled.lanes, tiled.lanes)

    _each_column(tiled, target, column)


def _tiles_to_columns(x: tir.Buffer, y: tir.Buffer, tiled: Tiled, target: Target) -> None:
    def column(tile: tir.Expr, rows: int, col: tir.Expr) -> None:
        loaded = tir.vload(x, (tile * tiled.cols + col) * tiled.lanes, tiled.lanes)
        tir.vstore_lanes(y, loaded, col * tiled.rows + tile * tiled.lanes, tiled.lanes, 0, rows)

    _each_column(tiled, target, column)


def _each_tile(tiled: Tiled, target: Target, body: Callable[[tir.Expr, int], None]) -> None:
    """Call body(tile, real rows in it) for the full tiles and for the short last one."""
    full = tiled.rows // tiled.lanes
    if full:
        with tir.outer(full, target.threads) as tile:
            body(tile, tiled.lanes)
    if tiled.rows % tiled.lanes:
        body(tir.i32(full), tiled.rows % tiled.lanes)


def _each_block(tiled: Tiled, target: Target, block: Callable[[tir.Expr, int, tir.Expr, int], None]) -> None:
    """Call block(tile, rows, first column, columns) for all blocks of at most lanes x lanes."""
    whole, rest = divmod(tiled.cols, tiled.lanes)

    def tile_body(tile: tir.Expr, rows: int) -> None:
        if whole:
            with B.serial(whole) as at:
                block(tile, rows, at * tiled.lanes, tiled.lanes)
        if rest:
            block(tile, rows, tir.i32(whole * tiled.lanes), rest)

    _each_tile(tiled, target, tile_body)


def _each_column(tiled: Tiled, target: Target, column: Callable[[tir.Expr, int, tir.Expr], None]) -> None:
    def tile_body(tile: tir.Expr, rows: int) -> None:
        with B.serial(tiled.cols) as col:
            column(tile, rows, col)

    _each_tile(tiled, target, tile_body)


def _planes_to_plain(x: tir.Buffer, y: tir.Buffer, images: Images, target: Target) -> None:
    plain = Images(Plain(), (1, images.planes, images.height, images.width), images.lanes)
    with tir.outer(images.planes, target.threads) as plane, B.serial(images.height) as row:
        for column in range(0, images.width, images.lanes):
            loaded = images.load(x, images.row(plane, row), column)
            plain.store(y, plain.row(plane, row), column, loaded)


def _images_to_planes(
    x: tir.Buffer, y: tir.Buffer, images: Images, planes: Planes, target: Target, shift: tuple[int, int]
) -> None:
    sy, sx = planes.phases
    # One "image" per phase plane: same strides, shape that of a phase.
    phase_shape = (planes.batch, sy * sx * planes.channels, planes.height, planes.width)
    phase = Images(_single_phase(planes), phase_shape, planes.lanes)
    with tir.outer(planes.batch * planes.channels, target.threads) as plane:
        image, channel = plane // planes.channels, plane % planes.channels
        # The phases of some rows run in step, so that memory is read in order.
        for (begin, end), parities in _row_ranges(images.height, planes, shift[0]).items():
            outputs = {
                py: [((image * sy + py) * sx + px) * planes.channels + channel for px in range(sx)] for py in parities
            }
            for output in itertools.chain(*outputs.values()):
                phase.zero_borders(y, output, begin, end)
            if end > begin:
                with B.serial(end - begin) as at:
                    row = at + begin
                    for py, rows in outputs.items():
                        source = images.row(plane, row * sy + (py + shift[0]))
                        split = _shuffle_row if sx <= _SHUFFLED_PHASES else _gather_row
                        split(x, y, images, phase, source, [phase.row(o, row) for o in rows], shift[1])


def _row_ranges(height: int, planes: Planes, shift: int) -> dict[tuple[int, int], list[int]]:
    """(begin, end) -> row phases whose rows begin ... end - 1 are rows of an image of that height."""
    ranges: dict[tuple[int, int], list[int]] = {}
    step = planes.phases[0]
    for py in range(step):
        # Row `row` of the phase is row step * row + offset of the image.
        offset = py + shift
        begin = min(max(0, -(offset // step)), planes.height)
        end = max(begin, min(planes.height, -(-(height - offset) // step)))
        ranges.setdefault((begin, end), []).append(py)
    return ranges


def _single_phase(planes: Planes) -> Planes:
    sy, sx = planes.phases
    return Planes(planes.batch, sy * sx * planes.channels, planes.height, planes.width, planes.pad, planes.lanes)


def _shuffle_row(
    x: tir.Buffer, y: tir.Buffer, images: Images, phase: Images, source: tir.Expr, rows: list[tir.Expr], shift: int
) -> None:
    """Split one image row into its column phases: sx vectors in, one vector of each phase out."""
    lanes, sx = images.lanes, len(rows)
    for column in range(0, phase.row_stride, lanes):
        loaded = [tir.let(images.load(x, source, sx * column + shift + k * lanes)) for k in range(sx)]
        for px, row in enumerate(rows):
            value = loaded[0] if sx == 1 else tir.every(loaded, sx, px, lanes)
            phase.store(y, row, column, value)


def _gather_row(
    x: tir.Buffer, y: tir.Buffer, images: Images, phase: Images, source: tir.Expr, rows: list[tir.Expr], shift: int
) -> None:
    sx = len(rows)
    for px, row in enumerate(rows):
        with B.serial(phase.width) as column:
            at = tir.let(column * sx + (px + shift))
            inside = tirx.And(at >= 0, at < images.width)
            B.buffer_store(y, tirx.if_then_else(inside, x[source + at], tir.f32(0.0)), [row + column])
        fill(y, row + phase.width, phase.row_stride - phase.width, 0.0, phase.lanes)
