"""Layer normalisation over the last axis, in two passes for the variance (no cancellation); RMS norm without the first.

Plain [rows, n]: threads run along a row. Tiled: a cluster of blocks has 8 neighbouring tokens, its threads run over the
features.
"""

from __future__ import annotations

from sparsetvm.schedules.cuda.launch import Launch
from sparsetvm.schedules.cuda.remainder.rows import share_rows

from sparsetvm.core.layout import Layout
from sparsetvm.core.target import Target


def layer_norm_kernel(
    layout: Layout, shape: tuple[int, ...], epsilon: float, target: Target, symbol: str, centred: bool = True
) -> Launch:
    """Launch (X, G, B, Y): (x - mean) / sqrt(variance + epsilon) * G + B over the last axis of the logical `shape`.

    X and Y are Plain or Tiled; G and B are (n,) arrays. centred: False for an RMS norm, where 0 stands for the mean.
    """
    rows = share_rows(layout, shape, target)
    defines = (*rows.defines, ("SP_EPSILON", epsilon), ("SP_CENTRED", int(centred)))
    scalars = (*rows.scalars, rows.share)
    return Launch(
        "rows.cu",
        "layer_norm",
        defines,
        (rows.blocks, 1, 1),
        rows.block,
        rows.shared,
        rows.cluster,
        scalars,
        overlaps=True,
    )
