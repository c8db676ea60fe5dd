"""Rotary embeddings on Tiled activations: lanes hold tokens, so the two features that turn together are vectors.

    for tile, head:  for each feature of a half: both of the pair are loaded once, both results stored

Requires: X and Y in Tiled; tables as `rotary_tables` makes them.
"""

from __future__ import annotations

from sparsetvm.schedules.operators import rotary_tables
from sparsetvm.schedules.x86 import tir
from tvm.tirx.script import builder as B

from sparsetvm.core.layout import Tiled
from sparsetvm.core.target import Target

__all__ = ["rotary_kernel", "rotary_tables"]


def rotary_kernel(layout: Tiled, depth: int, target: Target, symbol: str) -> tir.Expr:
    """PrimFunc (X, C, S, Y) of heads with `depth` features."""
    lanes, half = layout.lanes, depth // 2
    physical, table = layout.physical_shape(()), (layout.tiles, depth, layout.lanes)
    with tir.prim_func(symbol) as builder:
        x, cosines, sines, y = tir.flat_args(X=physical, C=table, S=table, Y=physical)
        with (
            tir.outer(layout.tiles, target.threads) as tile,
            B.serial(layout.cols // depth) as head,
            B.serial(half) as feature,
        ):
            at = [tir.let((tile * layout.cols + head * depth + feature + by) * lanes) for by in (0, half)]
            entry = [tir.let((tile * depth + feature + by) * lanes) for by in (0, half)]
            pair = [tir.let(tir.vload(x, place, lanes)) for place in at]
            for mine, (place, row) in enumerate(zip(at, entry, strict=True)):
                turned = pair[mine] * tir.vload(cosines, row, lanes) + pair[1 - mine] * tir.vload(sines, row, lanes)
                tir.vstore(y, turned, place, lanes)
    return builder.get()
