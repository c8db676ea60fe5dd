"""How an activation lies in memory. The kernels read and write these layouts directly; nothing is repacked in between.

`Plain`    row-major, the ONNX shape.
`Tiled`    a matrix of `rows` tokens x `cols` features as [rows/lanes][cols][lanes]: one vector holds the same feature
           of `lanes` tokens, so a product with a constant matrix, a softmax or a layer norm needs no horizontal step.
`Planes`   images [batch][channels][plane_stride]: each plane has row stride `row_stride` >= width, so that the columns
           between two rows and the rows above and below are zeros and a padded convolution is a list of offsets
           ("taps"). With `phases` (sy, sx) the image is split into sy*sx sub-images (row parity, column parity), so
           that a strided convolution reads contiguous vectors as well: channel index = (py * sx + px) * channels + c.
`HalfTiled` as `Tiled`, in float16, between layers that multiply float16.
`PlaneTiles`  the grid of such planes as [batch][tiles][channels][lanes], between 1x1 convolutions.
`BatchTiles`  [pixels][channels][lanes]: one vector holds the same pixel and channel of `lanes` images, so that no lane
           is empty however small the images are, and a neighbouring pixel is another whole vector.
"""

from __future__ import annotations

import msgspec
import numpy as np


class Layout(msgspec.Struct, frozen=True, tag_field="layout"):
    """Base of all layouts."""

    @property
    def half(self) -> bool:
        """True where float32 numbers are stored as float16."""
        return False

    def physical_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the buffer that stores a tensor of the logical `shape`."""
        raise TypeError(f"{type(self).__name__} has no physical shape")


class Plain(Layout, frozen=True, tag="plain"):
    """Row-major, the logical shape itself."""

    def physical_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(shape)


class Tiled(Layout, frozen=True, tag="tiled"):
    """[ceil(rows/lanes)][cols][lanes] float32; lanes past `rows` hold unspecified finite values."""

    rows: int
    cols: int
    lanes: int

    @property
    def tiles(self) -> int:
        return -(-self.rows // self.lanes)

    def physical_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (self.tiles, self.cols, self.lanes)

    def to_physical(self, array: np.ndarray) -> np.ndarray:
        """Pack a logical (..., cols) array; rows past the end are zero."""
        flat = array.reshape(self.rows, self.cols)
        padded = np.zeros((self.tiles * self.lanes, self.cols), array.dtype)
        padded[: self.rows] = flat
        return np.ascontiguousarray(padded.reshape(self.tiles, self.lanes, self.cols).transpose(0, 2, 1))

    def to_logical(self, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Unpack a physical array into the logical `shape`."""
        flat = array.reshape(self.tiles, self.cols, self.lanes).transpose(0, 2, 1).reshape(-1, self.cols)
        return np.ascontiguousarray(flat[: self.rows]).reshape(shape)


class HalfTiled(Tiled, frozen=True, tag="half_tiled"):
    """`Tiled` in float16: half the traffic. lanes is a multiple of 8, so that rows of lanes begin at 16 bytes."""

    @property
    def half(self) -> bool:
        return True


class Planes(Layout, frozen=True, tag="planes"):
    """[batch][phases*channels][plane_stride] float32; everything outside the image is zero.

    `height`, `width` are those of one phase image (the whole image when phases is (1, 1)); `pad` is the number of zero
    columns between rows and of zero rows above and below; `lanes` is the vector width that tiles are counted in.
    """

    batch: int
    channels: int
    height: int
    width: int
    pad: int
    lanes: int
    phases: tuple[int, int] = (1, 1)

    @property
    def row_stride(self) -> int:
        return self.width + self.pad

    @property
    def origin(self) -> int:
        """Offset of pixel (0, 0) in its plane, a multiple of `lanes`."""
        return -(-(self.pad * self.row_stride + self.pad) // self.lanes) * self.lanes

    @property
    def positions(self) -> int:
        """Grid positions of one plane, zero columns included."""
        return self.height * self.row_stride

    @property
    def tiles(self) -> int:
        return -(-self.positions // self.lanes)

    @property
    def plane_stride(self) -> int:
        """Floats per plane: an odd number of cache lines (even strides would alias in L1), room for all tap reads."""
        need = self.origin + self.tiles * self.lanes + self.pad * self.row_stride + self.pad + self.lanes
        lines = -(-need // 16)
        return (lines + 1 - lines % 2) * 16

    def physical_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (self.batch, self.phases[0] * self.phases[1] * self.channels, self.plane_stride)

    def tap(self, channel: int, dy: int, dx: int) -> int:
        """Offset in floats of pixel (y + dy, x + dx) of `channel` relative to pixel (y, x) of channel 0."""
        return channel * self.plane_stride + dy * self.row_stride + dx

    def phase_tap(self, channel: int, dy: int, dx: int) -> int:
        """Offset of input pixel (sy*y + dy, sx*x + dx) relative to grid position (y, x) in the phase-split image."""
        sy, sx = self.phases
        py, px = dy % sy, dx % sx
        return self.tap((py * sx + px) * self.channels + channel, (dy - py) // sy, (dx - px) // sx)

    def mask(self) -> np.ndarray:
        """Boolean (tiles, lanes): True where a grid position is a real pixel."""
        real = np.zeros(self.tiles * self.lanes, bool)
        real[: self.positions].reshape(self.height, self.row_stride)[:, : self.width] = True
        return real.reshape(self.tiles, self.lanes)

    def image_shape(self) -> tuple[int, int]:
        """(rows, columns) of the smallest whole image that all phases cover."""
        return self.height * self.phases[0], self.width * self.phases[1]

    def to_physical(self, array: np.ndarray) -> np.ndarray:
        """Store an image batch (batch, channels, H, W); with phases, H and W may fall short of `image_shape`."""
        sy, sx = self.phases
        full = np.zeros((self.batch, self.channels, *self.image_shape()), array.dtype)
        full[:, :, : array.shape[2], : array.shape[3]] = array
        out = np.zeros(self.physical_shape(array.shape), array.dtype)
        grid = self._grid(out)
        for py in range(sy):
            for px in range(sx):
                first = (py * sx + px) * self.channels
                grid[:, first : first + self.channels, :, : self.width] = full[:, :, py::sy, px::sx]
        return out

    def to_logical(self, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Read back an image batch of the logical `shape`; the phases must be (1, 1)."""
        return np.ascontiguousarray(self._grid(array)[..., : self.width]).reshape(shape)

    def _grid(self, physical: np.ndarray) -> np.ndarray:
        planes = physical.reshape(self.batch, -1, self.plane_stride)
        view = planes[:, :, self.origin : self.origin + self.positions]
        return view.reshape(self.batch, planes.shape[1], self.height, self.row_stride)


class PlaneTiles(Layout, frozen=True, tag="plane_tiles"):
    """The grid of `Planes` cut into tiles: [batch][tiles][channels][lanes] float32; zero columns stay zero.

    All channels of a tile are contiguous, so a 1x1 convolution streams memory where planes make it jump from page to
    page; taps of other pixels are out of reach.
    """

    batch: int
    channels: int
    height: int
    width: int
    pad: int
    lanes: int

    @property
    def row_stride(self) -> int:
        return self.width + self.pad

    @property
    def tiles(self) -> int:
        return -(-self.height * self.row_stride // self.lanes)

    def physical_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (self.batch, self.tiles, self.channels, self.lanes)

    def mask(self) -> np.ndarray:
        """Boolean (tiles, lanes): True where a grid position is a real pixel."""
        return Planes(self.batch, self.channels, self.height, self.width, self.pad, self.lanes).mask()

    def to_physical(self, array: np.ndarray) -> np.ndarray:
        """Store an image batch (batch, channels, height, width)."""
        grid = np.zeros((self.batch, self.channels, self.tiles * self.lanes), array.dtype)
        rows = grid[:, :, : self.height * self.row_stride]
        rows.reshape(self.batch, self.channels, self.height, self.row_stride)[..., : self.width] = array
        tiled = grid.reshape(self.batch, self.channels, self.tiles, self.lanes)
        return np.ascontiguousarray(tiled.transpose(0, 2, 1, 3))

    def to_logical(self, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Read back an image batch of the logical `shape`."""
        tiled = array.reshape(self.batch, self.tiles, self.channels, self.lanes).transpose(0, 2, 1, 3)
        grid = tiled.reshape(self.batch, self.channels, -1)[:, :, : self.height * self.row_stride]
        rows = grid.reshape(self.batch, self.channels, self.height, self.row_stride)
        return np.ascontiguousarray(rows[..., : self.width]).reshape(shape)


class BatchTiles(Layout, frozen=True, tag="batch_tiles"):
    """[positions][channels][lanes] float32 of `lanes` images; everything outside the image is zero.

    `pad` is the number of zero pixels between two rows and of zero rows above and below. The taps of one channel lie
    whole pixels apart, often in the same few sets of L1: kernels take the columns of W pixel by pixel.
    """

    channels: int
    height: int
    width: int
    pad: int
    lanes: int

    @property
    def batch(self) -> int:
        return self.lanes

    @property
    def row_stride(self) -> int:
        """Pixels from one row to the next."""
        return self.width + self.pad

    @property
    def origin(self) -> int:
        """Position of pixel (0, 0)."""
        return self.pad * self.row_stride + self.pad

    @property
    def positions(self) -> int:
        """Pixels of the buffer, zero ones included."""
        return self.origin + (self.height + self.pad) * self.row_stride

    @property
    def pixel_stride(self) -> int:
        """Floats of one pixel."""
        return self.channels * self.lanes

    def physical_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (self.positions, self.channels, self.lanes)

    def tap(self, channel: int, dy: int, dx: int) -> int:
        """Offset in floats of pixel (y + dy, x + dx) of `channel` relative to pixel (y, x) of channel 0."""
        return (dy * self.row_stride + dx) * self.pixel_stride + channel * self.lanes

    def mask(self) -> np.ndarray:
        """Boolean (positions,): True where a position is a pixel of the images."""
        real = np.zeros(self.positions, bool)
        self._grid(real)[...] = True
        return real

    def to_physical(self, array: np.ndarray) -> np.ndarray:
        """Store an image batch (lanes, channels, height, width)."""
        out = np.zeros(self.physical_shape(array.shape), array.dtype)
        self._grid(out)[...] = array.transpose(2, 3, 1, 0)
        return out

    def to_logical(self, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Read back an image batch of the logical `shape`."""
        grid = self._grid(array.reshape(self.physical_shape(shape)))
        return np.ascontiguousarray(grid.transpose(3, 2, 0, 1)).reshape(shape)

    def _grid(self, physical: np.ndarray) -> np.ndarray:
        """View of the pixels, (height, width, ...)."""
        rows = physical[self.origin : self.origin + self.height * self.row_stride]
        return rows.reshape(self.height, self.row_stride, *physical.shape[1:])[:, : self.width]


AnyLayout = Plain | Tiled | HalfTiled | Planes | PlaneTiles | BatchTiles
PLAIN = Plain()


def narrows(source: AnyLayout, destination: AnyLayout) -> bool:
    """True when the destination is the source in float16, element for element."""
    return (
        type(source) is Tiled
        and isinstance(destination, HalfTiled)
        and (source.rows, source.cols, source.lanes) == (destination.rows, destination.cols, destination.lanes)
    )
