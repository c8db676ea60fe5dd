"""Weights with at most two non-zeros of every four columns, as Hopper's sparse tensor cores read them.

Of every four columns two are kept, in float16, and two bits say which each of them is. A tile is 64 rows x 64 columns:
two halves of 32 columns, [2][64][8] kept numbers each, then the positions as 128 words (see wgmma_sparse of wgmma.cuh).
"""

from __future__ import annotations

import numpy as np

TILE = 64  # rows and columns
TILE_BYTES = TILE * TILE + 4 * 128


def is_two_four(mask: np.ndarray) -> bool:
    """True when no four neighbouring columns, from column 0 on, of a boolean (m, k) mask have more than two."""
    padded = np.zeros((mask.shape[0], -(-mask.shape[1] // 4) * 4), bool)
    padded[:, : mask.shape[1]] = mask
    return bool(padded.reshape(-1, 4).sum(axis=1).max(initial=0) <= 2)


def pack_two_four(weight: np.ndarray, rows: int) -> np.ndarray:
    """(tiles of rows, tiles of columns, TILE_BYTES) uint8 of an (m, k) float32 weight; m is filled up to `rows` rows.

    Raises OverflowError for weights beyond float16.
    """
    m, k = weight.shape
    with np.errstate(over="ignore"):
        halves = weight.astype(np.float16)
    if not np.isfinite(halves).all():
        raise OverflowError("a weight is not finite in float16")
    down, across = -(-m // rows) * rows // TILE, -(-k // TILE)
    padded = np.zeros((down * TILE, across * TILE), np.float16)
    padded[:m, :k] = halves
    fours = padded.reshape(down * TILE, -1, 4)
    at = np.sort(np.argsort(fours == 0, axis=2, kind="stable")[:, :, :2], axis=2)
    kept = np.take_along_axis(fours, at, 2).reshape(down, TILE, across, 2, 2, 8)  # tile, row, tile, half, 16 columns
    numbers = np.ascontiguousarray(kept.transpose(0, 2, 3, 4, 1, 5)).view(np.uint8).reshape(down, across, -1)
    four_bits = (at[:, :, 0] | at[:, :, 1] << 2).astype(np.uint32)
    # Row 16 w + 8 r + g of a tile; the 16 columns 2 half + h.
    places = four_bits.reshape(down, 4, 2, 8, across, 2, 2, 4) << 4 * np.arange(4, dtype=np.uint32)
    sixteen = places.sum(axis=-1, dtype=np.uint32)
    words = (sixteen[:, :, 0] | sixteen[:, :, 1] << 16).transpose(0, 3, 1, 2, 4, 5)  # tile, tile, w, g, half, h
    chosen = np.ascontiguousarray(words).view(np.uint8).reshape(down, across, -1)
    return np.concatenate([numbers, chosen], axis=2)
