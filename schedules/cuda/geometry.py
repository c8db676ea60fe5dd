"""Where a workload's operands lie on a GPU: flat positions, and one offset per column of the weight.

Tokens are `Tiled` with a single tile ([features][tokens padded to 4]); images are `Planes` with lanes = 4. Both are
    Y[y0 + image * y_batch + m * y_row + p] = activation(sum_k W[m, k] * X[x0 + image * x_batch + taps[k] + p] + ...)
for flat positions p in [0, positions): zero columns between image rows count as positions, are computed like the others
and stored as zero. A k x k convolution is therefore a product whose rows of X start anywhere in their plane.
"""

from __future__ import annotations

import functools

import numpy as np
from sparsetvm.schedules.x86.geometry import TapGeometry, supports_taps, tap_geometry

from sparsetvm.core.layout import BatchTiles, Tiled
from sparsetvm.core.workload import Workload
from sparsetvm.formats.flat_geometry import FlatGeometry

__all__ = ["FlatGeometry", "flat_geometry", "supports_flat"]


def supports_flat(workload: Workload, half: bool = False) -> bool:
    """True when X, Y and the residual can be addressed by flat positions; half: they may be float16 in memory."""
    if not supports_taps(workload):
        return False
    layout = workload.layout_in
    if isinstance(layout, BatchTiles):
        return False
    if not half and any(other.half for other in (layout, workload.layout_out, workload.residual_layout)):
        return False
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
        taps.r0, taps.r_batch, taps.residual_stride, taps.zeros[0].ranges if taps.zeros else (),
    )  # fmt: skip
