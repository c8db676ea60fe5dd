"""Minimal filtering (formats/toom_cook.py) in TIR: what the kernels that use it share."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from sparsetvm.schedules.x86 import tir
from tvm import tirx

from sparsetvm.formats.toom_cook import OUTPUTS, input_matrix, points


def to_points(rows: Sequence[tir.Expr], taps: int, lanes: int) -> list[tir.Expr]:
    """B d: the taps + 3 points of as many input rows, which must be bound."""
    found = []
    for row in input_matrix(taps):
        terms = [rows[r] * tir.splat(float(row[r]), lanes) for r in np.flatnonzero(row).tolist()]
        found.append(functools.reduce(lambda a, b: a + b, terms))
    return found


def from_points(m: Sequence[tir.Expr], taps: int, lanes: int) -> list[tir.Expr]:
    """A m: four rows of outputs from the points; sums and differences of opposite points come first."""
    finite = points(taps)
    pairs = range(len(finite) % 2, len(finite), 2)
    sums = [tir.let(m[i] + m[i + 1]) for i in pairs]
    differences = [tir.let(m[i] - m[i + 1]) for i in pairs]
    rows = []
    for power in range(OUTPUTS):
        terms = differences if power % 2 else sums
        factors = [finite[i] ** power for i in pairs]
        scaled = [t if f == 1.0 else t * tir.splat(f, lanes) for f, t in zip(factors, terms, strict=True)]
        zero = [m[0]] if power == 0 and len(finite) % 2 else []
        infinity = [m[len(finite)]] if power == OUTPUTS - 1 else []
        rows.append(tir.let(functools.reduce(lambda a, b: a + b, [*zero, *infinity, *scaled])))
    return rows


def larger_magnitude(value: tir.Expr, largest: tir.Expr, lanes: int) -> tir.Expr:
    """The larger of |value| and `largest` in every lane, NaN where there is one."""
    bits = tirx.bitwise_and(tir.bits(value, f"int32x{lanes}"), tirx.Broadcast(tir.i32(0x7FFFFFFF), lanes))
    return tir.let(tir.vmax_nan(tir.let(tir.bits(bits, f"float32x{lanes}")), largest))


def largest_lane(vector: tir.Expr, lanes: int) -> tir.Expr:
    """The largest lane of a bound vector, or NaN."""
    total = tir.reduce_lanes(vector, lanes, lambda a, b: tir.vmax_nan(tir.let(a), b))
    return tir.let(tirx.Shuffle([total], [0]))
