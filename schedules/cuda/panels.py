"""What templates on panels of rows share (formats/panel_steps.py): what they can run, scalars, expected work."""

from __future__ import annotations

import math

from sparsetvm.schedules.cuda.geometry import FlatGeometry, flat_geometry, supports_flat

from sparsetvm.core.layout import Tiled
from sparsetvm.core.workload import Workload
from sparsetvm.formats.panel_steps import STEP

_FEWEST_ROWS = 8  # of a block: of the 16 rows of an instruction, half are then zeros at worst
_HALF_LANES = 8  # float16 numbers of 16 bytes
# Clocks and bytes a clock and multiprocessor, fitted to 527 times of block_mma on an H200 (see its estimate).
FIXED, L2_BYTES, STORED = 2300, 24, 20


def shares_columns(workload: Workload) -> bool:
    """True for patterns whose rows come in groups with the same columns."""
    kind, (rows, _) = workload.pattern.kind, workload.pattern.block
    return kind in ("rows", "columns") or (kind == "block" and rows >= _FEWEST_ROWS)


def supports_panels(workload: Workload) -> bool:
    """True for products and 1x1 convolutions whose factors may be float16."""
    return workload.fp16 and fits_panels(workload, half=True)


def fits_panels(workload: Workload, half: bool) -> bool:
    """True for products and 1x1 convolutions; half: X, Y and the residual may be float16 in memory."""
    if not supports_flat(workload, half):
        return False
    g = flat_geometry(workload)
    halves = [layout for layout in (workload.layout_in, workload.layout_out) if layout.half]
    aligned = all(isinstance(layout, Tiled) and layout.lanes % _HALF_LANES == 0 for layout in halves)
    return aligned and len(g.taps) == 1 and g.x_row != 0 and int(g.taps[0].max()) < 1 << 31


def run_of(workload: Workload) -> int:
    """Neighbouring columns that a panel takes together."""
    wide = STEP if workload.pattern.kind in ("rows", "dense") else workload.pattern.block[1]
    return next(run for run in (16, 8, 1) if wide % run == 0 and run <= workload.k)


def expected_steps(workload: Workload, rows: int) -> tuple[float, float]:
    """Mean and standard deviation of the 16-column steps of a panel, were the blocks strewn at random."""
    pattern = workload.pattern
    if pattern.kind in ("dense", "columns"):
        return max(1.0, pattern.density * workload.k / STEP), 0.0
    r, c = pattern.block if pattern.kind == "block" else (1, workload.k)
    share = 1.0 - (1.0 - pattern.density) ** max(1, rows // r)
    columns = workload.k / c
    return share * columns * c / STEP, math.sqrt(share * (1.0 - share) * columns) * c / STEP


def panel_scalars(g: FlatGeometry, rows: int, panels: int) -> tuple[int, ...]:
    """The scalars of block_mma.cu."""
    head, tail, stop = (g.borders[0][1], *g.borders[1]) if g.borders else (0, 0, 0)
    return (
        *(rows, panels, g.positions, g.valid, g.pitch, g.width, g.x0, g.x_batch, g.x_row, g.y0, g.y_batch, g.y_row),
        *(g.r0, g.r_batch, g.r_row, head, tail, stop),
    )
