"""Which floats of X a block needs for a run of positions: one window per row of X, or per channel and stride phase."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sparsetvm.schedules.cuda.geometry import FlatGeometry

from sparsetvm.core.layout import Planes
from sparsetvm.core.workload import Workload


@dataclass(frozen=True)
class Windows:
    """How the columns of the weight find their X in tiles of `tile` positions.

    aligned: a window is one row of X and a column of the weight, its positions 16-byte aligned. rows: windows that all
    columns of a group need. columns: columns of the weight that one channel's `phases` windows serve. length: floats of
    a window. starts: (phases, 2) int32: offset of the window of position 0 of channel 0, and floats that may be read
    from there. x0, x_group, x_row: offset of the first window, step to the next group's, to the next channel's.
    """

    aligned: bool
    rows: int
    columns: int
    phases: int
    length: int
    starts: np.ndarray
    x0: int
    x_group: int
    x_row: int
    lows: np.ndarray
    phase_of: np.ndarray
    shifts: np.ndarray

    def offsets(self, chunk_rows: int) -> np.ndarray:
        """(columns of a chunk of `chunk_rows` windows,) int64 byte offset of each column's X in the chunk's tile."""
        channel = np.arange(chunk_rows // self.phases)[:, None] * self.phases
        inside = self.shifts - self.lows[self.phase_of]
        offsets: np.ndarray = ((channel + self.phase_of) * self.length + inside) * 4
        return offsets.ravel()


def aligned_rows(geometry: FlatGeometry) -> bool:
    """True when each column of the weight is a 16-byte aligned row of X, the rows one step apart."""
    return geometry.x_row != 0 and all(
        taps[0] % 4 == 0 and np.array_equal(taps - taps[0], geometry.taps[0] - geometry.taps[0][0])
        for taps in geometry.taps
    )


def windows(workload: Workload, geometry: FlatGeometry, tile: int) -> Windows:
    """Windows of a workload for tiles of `tile` positions."""
    taps = geometry.taps
    step = int(taps[1][0] - taps[0][0]) if len(taps) > 1 else 0
    zero = np.zeros(1, np.int64)
    if aligned_rows(geometry):
        x0 = geometry.x0 + int(taps[0][0])
        starts = np.array([[0, geometry.positions]], np.int32)
        return Windows(True, workload.k, 1, 1, tile, starts, x0, step, geometry.x_row, zero, zero, zero)
    conv, layout = workload.conv, workload.layout_in
    if conv is None or not isinstance(layout, Planes):
        raise TypeError("only a convolution of planes has taps that are no rows")
    per_channel = conv.kernel[0] * conv.kernel[1]
    plane = conv.in_channels * layout.plane_stride  # from one phase's planes to the next
    shifts, phase = [], []
    for ky in range(conv.kernel[0]):
        for kx in range(conv.kernel[1]):
            dy, dx = ky * conv.dilation[0] - conv.pads[0], kx * conv.dilation[1] - conv.pads[1]
            phase.append(dy % layout.phases[0] * layout.phases[1] + dx % layout.phases[1])
            shifts.append(dy // layout.phases[0] * layout.row_stride + dx // layout.phases[1])
    planes, phase_of = np.unique(phase, return_inverse=True)
    shift = np.array(shifts, np.int64)
    lows = np.array([shift[phase_of == f].min() // 4 * 4 for f in range(planes.size)])
    highs = np.array([-(-shift[phase_of == f].max() // 4) * 4 for f in range(planes.size)])
    starts = np.stack([planes * plane + lows, geometry.positions + highs - lows], 1).astype(np.int32)
    length = tile + int((highs - lows).max())
    rows = workload.k // per_channel * planes.size
    return Windows(
        False, rows, per_channel, planes.size, length, starts, geometry.x0, step, layout.plane_stride, lows,
        phase_of.ravel(), shift,
    )  # fmt: skip
