"""Rows of values that lie in memory in several stretches: plain rows, and images in Planes with what is around them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from sparsetvm.schedules.x86 import tir
from sparsetvm.schedules.x86.remainder.images import Images, fill
from tvm.tirx.script import builder as B

from sparsetvm.core.layout import AnyLayout, Plain


@dataclass(frozen=True)
class Side:
    """Where the stretches of a row lie on one side of a kernel.

    Row r begins at r * row_step + first, its stretch s lies s // per_plane * plane_step + s % per_plane * step behind.
    images: None for plain rows.
    """

    row_step: int
    first: int
    plane_step: int
    step: int
    images: Images | None

    def offset(self, row: tir.Expr, stretch: tir.Expr, per_plane: int) -> tir.Expr:
        return (
            row * self.row_step + self.first + stretch // per_plane * self.plane_step + stretch % per_plane * self.step
        )


@dataclass(frozen=True)
class Stretches:
    """`rows` rows of `count` stretches of `size` values each, in X and in Y, in the order of the plain row."""

    rows: int
    count: int
    size: int
    per_plane: int
    x: Side
    y: Side

    @property
    def values(self) -> int:
        return self.count * self.size

    def each_vector(self, row: tir.Expr, lanes: int, body: Callable[[tir.Expr, tir.Expr, tir.Expr, int], None]) -> None:
        """Loops that call body(offset in X, offset in Y, index of the vector in a padded row, real lanes).

        The padded row has ceil(size / lanes) vectors for each stretch.
        """
        whole, tail = divmod(self.size, lanes)
        padded = whole + (tail > 0)
        with B.serial(self.count) as stretch:
            x = B.Bind(self.x.offset(row, stretch, self.per_plane))
            y = B.Bind(self.y.offset(row, stretch, self.per_plane))
            if whole:
                with B.serial(whole) as i:
                    body(x + i * lanes, y + i * lanes, stretch * padded + i, lanes)
            if tail:
                body(x + whole * lanes, y + whole * lanes, stretch * padded + whole, tail)

    def load(self, x: tir.Buffer, at: tir.Expr, real: int, lanes: int) -> tir.Expr:
        """`real` values of X in the first lanes of a vector; what the others hold is of no use.

        In planes there is something behind every row. No masked load there: LLVM makes `vexpandps` of those whose mask
        it knows, which takes 5 clocks on a Zen 4.
        """
        if self.x.images is not None:
            return tir.vload(x, at, lanes)
        return tir.vload_lanes(x, at, lanes, 0, real)

    def zero_around(self, y: tir.Buffer, row: tir.Expr, lanes: int) -> None:
        """Zeros in everything of Y's planes that is no pixel; nothing for plain rows."""
        images = self.y.images
        if images is None:
            return
        planes = images.planes // self.rows
        with B.serial(planes) as plane:
            if self.per_plane == 1:
                images.zero_borders(y, row * planes + plane)
            else:
                fill(y, (row * planes + plane) * images.plane_stride, images.plane_stride, 0.0, lanes)


def stretches_of(shape: tuple[int, ...], axis: int, source: AnyLayout, out: AnyLayout, lanes: int) -> Stretches:
    """Rows of everything from `axis` on; with a layout that is not plain, an image batch and axis 1."""
    n = math.prod(shape[axis:])
    rows = math.prod(shape[:axis])
    if isinstance(source, Plain) and isinstance(out, Plain):
        plain = Side(n, 0, 0, 0, None)
        return Stretches(rows, 1, n, 1, plain, plain)
    _, channels, height, width = shape
    images = Images(source, shape, lanes), Images(out, shape, lanes)
    gapless = all(i.row_stride == width for i in images)
    per_plane = 1 if gapless else height

    def side(layout: AnyLayout, i: Images) -> Side:
        kept = None if isinstance(layout, Plain) else i
        return Side(channels * i.plane_stride, i.origin, i.plane_stride, i.row_stride, kept)

    size = height * width if gapless else width
    return Stretches(rows, channels * per_plane, size, per_plane, side(source, images[0]), side(out, images[1]))
