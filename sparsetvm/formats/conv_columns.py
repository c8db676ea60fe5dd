"""The weight of a convolution by input channels, for kernels that read only what non-zero activations meet.

An entry is `height` neighbouring output rows that share their non-zeros at one input channel and one tap (ky, kx),
with their weights. Slices of 16 output rows have entries of their own, so that the sums of a slice fit into L1. Threads
share the slices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsetvm.formats.columns import deal_slices

LANES = 16


@dataclass(frozen=True)
class ConvColumns:
    """Entries of all slices behind each other.

    values: float32 [entry][height]. offsets: int32 [entry], from the sums of the position of an activation to the
    entry's first row at the position that the tap makes of it, 16 floats for each position.
    lines: int32 [entry], channel * kernel rows + ky; ascending in a slice.
    first: int32 [slice + 1], the first entry of each slice, and the end.
    bounds: (parts + 1,) int32, part p has the slices bounds[p] : bounds[p + 1].
    """

    height: int
    values: np.ndarray
    offsets: np.ndarray
    lines: np.ndarray
    first: np.ndarray
    bounds: np.ndarray


def pack_conv_columns(
    weight: np.ndarray, kernel: tuple[int, int], tap_positions: np.ndarray, parts: int, height: int
) -> ConvColumns:
    """Format of `weight` (m, channels * kh * kw), `height` a divisor of 16.

    tap_positions: (kh, kw), how many positions of the grid an activation lies behind the output that it is added to.
    """
    m, k = weight.shape
    kh, kw = kernel
    slices = -(-m // LANES)
    padded = np.zeros((slices * LANES, k), np.float32)
    padded[:m] = weight
    bounds = deal_slices(np.count_nonzero(padded.reshape(slices, LANES * k), axis=1), parts)
    entries = padded.reshape(slices, LANES // height, height, k)
    of_slice, column, row = np.nonzero((entries != 0).any(axis=2).transpose(0, 2, 1))
    offsets = row * height - tap_positions.reshape(-1)[column % (kh * kw)] * LANES
    first = np.searchsorted(of_slice, np.arange(slices + 1))
    values, lines = entries[of_slice, row, :, column], column // kw
    if not values.size:  # arrays are never empty
        values, offsets, lines = np.zeros((1, height), np.float32), np.zeros(1, np.int64), np.zeros(1, np.int64)
    return ConvColumns(
        height, values.ravel(), offsets.astype(np.int32), lines.astype(np.int32), first.astype(np.int32), bounds
    )
