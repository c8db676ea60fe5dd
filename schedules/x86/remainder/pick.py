"""Every n-th pixel of images in plane tiles: what a strided 1x1 convolution reads.

    for tile of Y:  which tiles of X hold its pixels, and where: a table
        for channel:  vpermi2ps for each two of them

Without AVX-512 a pixel at a time. A zero column of Y takes one of X, so no lane needs a mask.

Requires: PlaneTiles of X with zero columns, PlaneTiles of Y.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from sparsetvm.schedules.x86 import tir
from tvm import tirx
from tvm.tirx.script import builder as B

from sparsetvm.core.layout import PlaneTiles
from sparsetvm.core.target import Target

_Table = tuple[tir.Buffer, tir.Expr]  # and where the entries of a tile begin
_PERMUTE = "llvm.x86.avx512.vpermi2var.ps.512"


def pick_tables(
    source: PlaneTiles, out: PlaneTiles, strides: tuple[int, int], target: Target
) -> tuple[np.ndarray, np.ndarray]:
    """int32 tables: floats from the start of an image of X to channel 0 of some place, and which of them go where.

    AVX-512: for each tile of Y an even number of tiles of X, and for each two of them 16 lanes: the float of the two
    that it takes, or -1 where another pair has it. Otherwise: the place of each lane, and nothing.
    """
    y, x = np.divmod(np.arange(out.tiles * out.lanes), out.row_stride)
    real = (y < out.height) & (x < out.width)
    # Else the first column behind the first row, which is zero.
    position = np.where(real, y * strides[0] * source.row_stride + x * strides[1], source.width)
    tile, lane = np.divmod(position.reshape(out.tiles, out.lanes), source.lanes)
    image_tile = source.channels * source.lanes
    if not _permutes(target):
        return (tile * image_tile + lane).astype(np.int32).ravel(), np.zeros(1, np.int32)
    needed = [np.unique(row) for row in tile]
    count = max(row.size for row in needed) + 1 & ~1
    tiles = np.stack([np.pad(row, (0, count - row.size), mode="edge") for row in needed])
    # The first of equal ones: what was filled up is never chosen.
    where = (tile[:, :, None] == tiles[:, None, :]).argmax(2)
    pairs = np.arange(count // 2)[None, :, None]
    lanes = np.where(where[:, None] // 2 == pairs, where[:, None] % 2 * out.lanes + lane[:, None], -1)
    return (tiles * image_tile).astype(np.int32).ravel(), lanes.astype(np.int32).ravel()


def pick_kernel(
    source: PlaneTiles, out: PlaneTiles, tables: tuple[np.ndarray, np.ndarray], target: Target, symbol: str
) -> tir.Expr:
    """PrimFunc (X, places, lanes, Y); tables: those of `pick_tables`, which only say how long they are."""
    image = source.tiles * source.channels * source.lanes
    places_of, lanes_of = (table.size // out.tiles for table in tables)
    one_tile = _permuted if _permutes(target) else _copied
    with tir.prim_func(symbol) as builder:
        shapes = {"places": (tables[0].size, "int32"), "lanes": (tables[1].size, "int32")}
        x, places, lanes, y = tir.flat_args(X=source.physical_shape(()), **shapes, Y=out.physical_shape(()))
        with tir.outer(out.batch * out.tiles, target.threads) as at:
            start, tile = at // out.tiles * image, at % out.tiles
            froms = [tir.let(start + places[tile * places_of + i]) for i in range(places_of)]
            one_tile(x, froms, (lanes, tile * lanes_of), y, at * out.channels * out.lanes, out)
    return builder.get()


def _permutes(target: Target) -> bool:
    return target.isa == "avx512"


def _permuted(
    x: tir.Buffer,
    froms: list[tir.Expr],
    lanes: tuple[tir.Buffer, tir.Expr],
    y: tir.Buffer,
    to: tir.Expr,
    out: PlaneTiles,
) -> None:
    """A tile of Y from pairs of tiles of X; every lane is chosen by one pair."""
    table, first = lanes
    chosen = [tir.let(tir.vload(table, first + i * out.lanes, out.lanes)) for i in range(len(froms) // 2)]
    with B.serial(out.channels) as channel:
        step = channel * out.lanes
        values = [tir.vload(x, place + step, out.lanes) for place in froms]
        total = None
        for which, (low, high) in zip(chosen, list(pairwise(values))[::2], strict=True):
            picked = tirx.call_llvm_pure_intrin("float32x16", _PERMUTE, low, which, high)
            total = (
                picked if total is None else tirx.Select(which < tirx.Broadcast(tir.i32(0), out.lanes), total, picked)
            )
        tir.vstore(y, total, to + step, out.lanes)


def _copied(x: tir.Buffer, froms: list[tir.Expr], _: _Table, y: tir.Buffer, to: tir.Expr, out: PlaneTiles) -> None:
    with B.serial(out.channels) as channel:
        for lane, place in enumerate(froms):
            B.buffer_store(y, x[place + channel * out.lanes], [to + channel * out.lanes + lane])
