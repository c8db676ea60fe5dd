"""Layer normalisation over the last axis, in two passes for the variance (no cancellation); RMS norm without the first.

Plain [rows, n]: lanes run along a row. Tiled: lanes hold tokens and a tile is one run of floats, so the same sums need
no step across lanes.
"""

from __future__ import annotations

import math

from sparsetvm.schedules.x86 import tir
from sparsetvm.schedules.x86.remainder.runs import add, each_vector, reduce_run
from tvm import tirx

from sparsetvm.core.layout import Layout, Tiled
from sparsetvm.core.target import Target


def layer_norm_kernel(
    layout: Layout, shape: tuple[int, ...], epsilon: float, target: Target, symbol: str, centred: bool = True
) -> tir.Expr:
    """PrimFunc (X, G, B, Y): (x - mean) / sqrt(variance + epsilon) * G + B over the last axis of the logical `shape`.

    X and Y are Plain or Tiled; G and B are (n,) arrays. centred: False for an RMS norm, where 0 stands for the mean.
    """
    n, physical = shape[-1], layout.physical_shape(shape)
    with tir.prim_func(symbol) as builder:
        x, gamma, beta, y = tir.flat_args(X=physical, G=(n,), B=(n,), Y=physical)
        if isinstance(layout, Tiled):
            with tir.outer(layout.tiles, target.threads) as tile:
                _Norm(x, gamma, beta, y, tile * (n * layout.lanes), n, epsilon, layout.lanes, centred).tokens()
        else:
            with tir.outer(math.prod(shape[:-1]), target.threads) as row:
                _Norm(x, gamma, beta, y, row * n, n, epsilon, target.lanes, centred).row()
    return builder.get()


class _Norm:
    """Normalises the run of floats at `start`: one row, or one tile of tokens."""

    def __init__(
        self,
        x: tir.Buffer,
        gamma: tir.Buffer,
        beta: tir.Buffer,
        y: tir.Buffer,
        start: tir.Expr,
        n: int,
        epsilon: float,
        lanes: int,
        centred: bool,
    ) -> None:
        self.x, self.gamma, self.beta, self.y, self.start = x, gamma, beta, y, start
        self.n, self.epsilon, self.lanes, self.centred = n, epsilon, lanes, centred

    def row(self) -> None:
        """One row: lanes are neighbouring features."""
        mean, scale = self._statistics(self.n, across=True)

        def finish(offset: tir.Expr, end: int) -> None:
            gamma = tir.vload_lanes(self.gamma, offset, self.lanes, 0, end)
            beta = tir.vload_lanes(self.beta, offset, self.lanes, 0, end)
            value = (self._load(offset, end) - mean) * scale * gamma + beta
            tir.vstore_lanes(self.y, value, self.start + offset, self.lanes, 0, end)

        each_vector(self.n, self.lanes, finish)

    def tokens(self) -> None:
        """One tile: lanes are tokens, feature f is the vector at f * lanes."""
        mean, scale = self._statistics(self.n * self.lanes, across=False)

        def finish(offset: tir.Expr, end: int) -> None:
            feature = offset // self.lanes
            gamma, beta = tir.splat(self.gamma[feature], self.lanes), tir.splat(self.beta[feature], self.lanes)
            value = (self._load(offset, end) - mean) * scale * gamma + beta
            tir.vstore(self.y, value, self.start + offset, self.lanes)

        each_vector(self.n * self.lanes, self.lanes, finish)

    def _load(self, offset: tir.Expr, end: int) -> tir.Expr:
        return tir.vload_lanes(self.x, self.start + offset, self.lanes, 0, end)

    def _statistics(self, count: int, across: bool) -> tuple[tir.Expr, tir.Expr]:
        """Mean and 1 / sqrt(variance + epsilon) of the run; `across` lanes too, or of each lane."""

        def deviation(offset: tir.Expr, end: int) -> tir.Expr:
            difference = tir.let(self._load(offset, end) - mean)
            return tir.keep_lanes(difference * difference, self.lanes, end)

        share = tir.splat(1.0 / self.n, self.lanes)
        mean = tir.splat(0.0, self.lanes)
        if self.centred:
            total = reduce_run(count, self.lanes, self._load, add, 0.0, chains=8)
            mean = tir.let((tir.reduce_lanes(total, self.lanes, add) if across else total) * share)
        squares = reduce_run(count, self.lanes, deviation, add, 0.0, chains=8)
        squares = tir.reduce_lanes(squares, self.lanes, add) if across else squares
        variance = tir.let(squares * share + tir.splat(self.epsilon, self.lanes))
        return mean, tir.let(tir.splat(1.0, self.lanes) / tirx.sqrt(variance))
