"""Weight matrices as small pictures: where the non-zeros lie, as a PNG inside the page."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np

WHOLE, CORNER = 96, 40  # most pixels along a side
_COLOUR = (59, 130, 246)  # on light and dark grounds alike; how full a pixel is, its opacity says


def whole_picture(weight: np.ndarray) -> np.ndarray:
    """Share of non-zeros in each of at most WHOLE x WHOLE equal parts of an (m, k) weight, float64 in [0, 1]."""
    mask: np.ndarray = (weight != 0).astype(np.float64)
    for axis in (0, 1):
        size = mask.shape[axis]
        if size > WHOLE:
            edges = np.linspace(0, size, WHOLE + 1).astype(int)
            sums = np.add.reduceat(mask, edges[:-1], axis=axis)
            widths = np.diff(edges)
            mask = sums / (widths[:, None] if axis == 0 else widths[None, :])
    return mask


def corner_picture(weight: np.ndarray) -> np.ndarray:
    """The first CORNER rows and columns, one pixel per weight: 1 where it is not zero."""
    corner: np.ndarray = (weight[:CORNER, :CORNER] != 0).astype(np.float64)
    return corner


def png_url(shares: np.ndarray) -> str:
    """A data: URL of a PNG whose opacity is the square root of the shares over the largest (few stay visible)."""
    height, width = shares.shape
    top = float(shares.max()) or 1.0
    pixels = np.empty((height, width, 4), np.uint8)
    pixels[..., :3] = _COLOUR
    pixels[..., 3] = np.round(255 * np.sqrt(shares / top))
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)  # 0: no filter
    data = (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0))
        + _chunk(b"IDAT", zlib.compress(rows, 9))
        + _chunk(b"IEND", b"")
    )
    return "data:image/png;base64," + base64.b64encode(data).decode()


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
