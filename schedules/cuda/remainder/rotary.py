"""Rotary embeddings on Tiled activations, [features][tokens]: the two features that turn together are rows apart.

    thread: four tokens of a feature: x * cosine + partner * sine

Requires: X and Y in Tiled with a single tile; tables as `rotary_tables` makes them.
"""

from __future__ import annotations

from sparsetvm.schedules.cuda.launch import Launch
from sparsetvm.schedules.operators import rotary_tables

from sparsetvm.core.layout import Tiled
from sparsetvm.core.target import Target
from sparsetvm.errors import SparseTvmError

__all__ = ["rotary_kernel", "rotary_tables"]

_THREADS = 128


def rotary_kernel(layout: Tiled, depth: int, target: Target, symbol: str) -> Launch:
    """Launch (X, C, S, Y) of heads with `depth` features. Raises SparseTvmError for several tiles."""
    if layout.tiles != 1 or layout.lanes % 4:
        raise SparseTvmError(
            f"rotary embeddings need one tile of tokens, not {layout}", hint="convert the tensor first"
        )
    count = layout.cols * layout.lanes
    grid = (-(-count // (4 * _THREADS)), 1, 1)
    return Launch("rotary.cu", "rotary", (), grid, _THREADS, scalars=(count, depth, layout.lanes), overlaps=True)
