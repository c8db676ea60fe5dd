"""An image batch in a flat buffer, row-major NCHW or Planes: where rows lie, and rows read and written as vectors."""

from __future__ import annotations

from sparsetvm.schedules.x86 import tir
from tvm.tirx.script import builder as B

from sparsetvm.core.layout import Layout, Plain, Planes
from sparsetvm.errors import SparseTvmError


def plane_count(shape: tuple[int, ...]) -> int:
    """Number of planes of a (batch, channels, height, width) tensor."""
    return shape[0] * shape[1]


def fill(buffer: tir.Buffer, offset: tir.Expr, count: int, value: float, lanes: int) -> None:
    """Set `count` floats from `offset` on."""
    whole = count // lanes
    if whole > 8:
        with B.serial(whole) as i:
            tir.vstore(buffer, tir.splat(value, lanes), offset + i * lanes, lanes)
    else:
        for i in range(whole):
            tir.vstore(buffer, tir.splat(value, lanes), offset + i * lanes, lanes)
    tir.vstore_lanes(buffer, tir.splat(value, lanes), offset + whole * lanes, lanes, 0, count - whole * lanes)


class Images:
    """Geometry of one tensor. `layout` is Plain or Planes with phases (1, 1); `shape` is (batch, channels, H, W).

    Plane p = image * channels + channel starts at p * plane_stride, its pixel (y, x) at origin + y * row_stride + x.
    """

    def __init__(self, layout: Layout, shape: tuple[int, ...], lanes: int) -> None:
        self.lanes = lanes
        _, _, self.height, self.width = shape
        self.planes = plane_count(shape)
        if isinstance(layout, Planes) and layout.phases == (1, 1):
            self.origin, self.row_stride, self.plane_stride = layout.origin, layout.row_stride, layout.plane_stride
        elif isinstance(layout, Plain):
            self.origin, self.row_stride, self.plane_stride = 0, self.width, self.height * self.width
        else:
            raise SparseTvmError(f"{layout} is not an image layout", hint="convert the tensor to Planes without phases")

    @property
    def vectors(self) -> int:
        """Vectors that cover one row and its pad columns."""
        return -(-self.row_stride // self.lanes)

    def row(self, plane: tir.Expr, y: tir.Expr) -> tir.Expr:
        """Offset of pixel (y, 0)."""
        return plane * self.plane_stride + self.origin + y * self.row_stride

    def load(self, buffer: tir.Buffer, row: tir.Expr, x: int, outside: float = 0.0) -> tir.Expr:
        """Pixels x ... x + lanes - 1 of the row at offset `row`; `outside` where that is left or right of the image."""
        return tir.vload_lanes(buffer, row + x, self.lanes, -x, self.width - x, outside)

    def store(self, buffer: tir.Buffer, row: tir.Expr, x: int, value: tir.Expr) -> None:
        """Store pixels x ... x + lanes - 1 of a row; pad columns become zero, nothing behind them is touched."""
        real = self.width - x
        if real <= 0:
            value = tir.splat(0.0, self.lanes)
        elif real < self.lanes and self.row_stride > self.width:
            value = tir.keep_lanes(value, self.lanes, real)
        tir.vstore_lanes(buffer, value, row + x, self.lanes, 0, self.row_stride - x)

    def zero_borders(self, buffer: tir.Buffer, plane: tir.Expr, first_row: int = 0, end_row: int | None = None) -> None:
        """Zero everything above `first_row` and from `end_row` (default: all rows) on to the end of the plane."""
        end_row = self.height if end_row is None else end_row
        start = plane * self.plane_stride
        head = self.origin + first_row * self.row_stride
        tail = self.origin + end_row * self.row_stride
        fill(buffer, start, head, 0.0, self.lanes)
        fill(buffer, start + tail, self.plane_stride - tail, 0.0, self.lanes)
