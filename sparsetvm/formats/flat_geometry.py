"""Where a layer's operands lie on a GPU, as templates and generators of code see it: flat positions of an image.

`schedules/cuda/geometry.py` makes it from a workload, and says what positions are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class FlatGeometry:
    """Offsets and strides in floats; all but `taps` of a convolution are multiples of 4 (16 bytes).

    taps[g]: (k,) int64 offsets of the columns of convolution group g. rows_per_group: output rows of one group.
    positions: of one image, a multiple of 4. x0, y0, r0: offset of position 0 of image 0 in X, Y and the residual;
    *_batch: step to the next image; y_row, r_row: step to the next output row. x_row: the same in X where all taps lie
    one row apart (products and 1x1 convolutions), else 0.
    pitch, width: position p is a real pixel when p % pitch < width and p < valid (tokens: pitch = width = positions).
    borders: (start, stop) ranges of every output plane that must be written as zero.
    """

    taps: tuple[np.ndarray, ...]
    rows_per_group: int
    batch: int
    positions: int
    valid: int
    pitch: int
    width: int
    x0: int
    x_batch: int
    x_row: int
    y0: int
    y_batch: int
    y_row: int
    r0: int
    r_batch: int
    r_row: int
    borders: tuple[tuple[int, int], ...]

    @property
    def border(self) -> tuple[int, int]:
        """Floats of zeros in front of position 0 and behind the last position of an output plane."""
        return (self.y0, self.borders[1][1] - self.borders[1][0]) if self.borders else (0, 0)
