"""Where a workload's operands lie on a GPU: flat positions, and one offset per column of the weight.

Tokens are `Tiled` with a single tile ([features][tokens padded to 4]); images are `Planes` with lanes = 4. Both are
    Y[y0 + image * y_batch + m * y_row + p] = activation(sum_k W[m, k] * X[x0 + image * x_batch + taps[k] + p] + ...)
for flat positions p in [0, positions): zero columns between image rows count as positions, are computed like the others
and stored as zero. A k x k convolution is therefore a product whose rows of X start anywhere in their plane.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from sparsetvm.schedules.x86.geometry import TapGeometry, supports_taps, tap_geometry

from sparsetvm.core.layout import Tiled
from sparsetvm.core.workload import Workload


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


def supports_flat(workload: Workload) -> bool:
    """True when X, Y and the residual can be addressed by flat positions."""
    if not supports_taps(workload):
        return False
    layout = workload.layout_in
    return not isinstance(layout, Tiled) or layout.tiles == 1


@functools.lru_cache(64)  # estimates of a whole space ask for it hundreds of times
def flat_geometry(workload: Workload) -> FlatGeometry:
    """Geometry of a workload for which `supports_flat` holds."""
    taps: TapGeometry = tap_geometry(workload)
    for offsets in taps.taps:
        offsets.setflags(write=False)
    lin, lout = workload.layout_in, workload.layout_out
    positions = taps.tiles * taps.lanes
    if isinstance(lin, Tiled):
        valid = pitch = width = positions
    else:
        valid, pitch, width = lout.positions, lout.row_stride, lout.width  # type: ignore[union-attr]
    steps = np.unique(np.diff(taps.taps[0]))
    return FlatGeometry(
        taps.taps, taps.rows_per_group, taps.batch, positions, valid, pitch, width, taps.x0, taps.x_batch,
        int(steps[0]) if steps.size == 1 and not steps[0] % 4 else 0, taps.y0, taps.y_batch, taps.row_stride,
        taps.r0, taps.r_batch, taps.residual_stride, taps.borders,
    )  # fmt: skip
