"""The k largest values of a long row, found with three passes over it instead of one for each bit.

    of 256 values from all over the row: two thresholds between which the k-th largest of the row should lie
    pass 1: count what reaches the lower one, list what lies between both (vcompressps)
    in the list, a tenth of the row: search a threshold that exactly as many values reach as shall stay
    pass 2: y = x where x reaches it

The thresholds are those whose ranks in the sample are two standard deviations off (Floyd and Rivest's SELECT, 1975).
The sample only has to be lucky for speed: where the k-th value lies elsewhere, pass 1 is repeated with what is left. A
list is searched by interpolation and bisection in turn over the bits of a float, which as integers ("keys") are in the
order of the floats once those of negative numbers are inverted, all but the sign. Vectors are compared as floats: what
is not below a threshold reaches it, NaN always, and the two zeros are equal.

Requires: AVX-512.
"""

from __future__ import annotations

import math
from typing import Literal

from sparsetvm.schedules.x86 import tir
from sparsetvm.schedules.x86.remainder.stretches import Stretches
from tvm import tirx
from tvm.tirx.script import builder as B

from sparsetvm.core.target import Target

_LANES = 16
_SMALLEST = 512  # values of a row that make it worth while
_SAMPLE = 16  # vectors, which stay in registers
_SAMPLE_BITS = 16  # of a threshold from the sample: sign, exponent and 7 bits
_INFINITY, _LOWEST = 0x7F800000, -0x7F800001  # keys of both infinities
_LOOKING, _LISTED, _HOPELESS = 0, 1, 2


def worth_a_sample(rows: Stretches, target: Target) -> bool:
    """Whether rows are searched this way."""
    return target.isa == "avx512" and rows.values >= _SMALLEST and rows.size >= _LANES


class SampledRow:
    """One row."""

    def __init__(self, x: tir.Buffer, y: tir.Buffer, row: tir.Expr, rows: Stretches, k: int) -> None:
        self.x, self.y, self.row, self.rows, self.k = x, y, row, rows, k
        self.low, self.high = _int_cell(), _int_cell()  # keys of the thresholds
        self.listed, self.above = _int_cell(), _int_cell()  # values between them, and at or above `high`
        self.list = tir.scratch(rows.values + _LANES)

    def write(self, ties: Literal["first", "all"]) -> tir.Expr:
        """Write the row to Y; the result is 0 where Y was left alone, for a search that sees all bits.

        That is with k or more values that are infinite or NaN, and with ties "first" where only some of several equal
        values may stay (unless they are zeros).
        """
        self._thresholds_of_sample()
        state = _int_cell(_LOOKING)
        with B.While(state[0] == _LOOKING):  # three times at most: what is left gets smaller or it is hopeless
            self._list_between()
            self._judge(state)
        written = _int_cell(0)
        with B.If(state[0] == _LISTED), B.Then():
            exact = self._search()
            if ties == "all":
                B.buffer_store(written, tir.i32(1), [0])
            else:
                harmless = tirx.Or(exact[0] == 1, _float_of(self.low[0]) == tir.f32(0.0))
                B.buffer_store(written, tirx.Select(harmless, tir.i32(1), tir.i32(0)), [0])
            with B.If(written[0] == 1), B.Then():
                self._keep(tir.let(_float_of(self.low[0])))
        return written[0]

    def _thresholds_of_sample(self) -> None:
        n, k, size = self.rows.values, self.k, _SAMPLE * _LANES
        spread = 2 * math.sqrt(size * k * (n - k)) / n + 1
        ranks = (math.ceil(size * k / n + spread), math.floor(size * k / n - spread))
        vectors = [tir.let(tir.vload(self.x, at, _LANES)) for at in self._sample_offsets()]
        for cell in (self.low, self.high):
            B.buffer_store(cell, tir.i32(-(1 << 31)), [0])
        # No loop of 16 turns, which LLVM would unroll.
        bits = _int_cell(-(1 << 31))
        with B.While(tirx.NE(bits[0], tir.i32(1 << (31 - _SAMPLE_BITS)))):
            bit = tir.let(bits[0])
            B.buffer_store(bits, tirx.bitwise_and(tirx.shift_right(bit, tir.i32(1)), tir.i32(0x7FFFFFFF)), [0])
            for cell, rank in zip((self.low, self.high), ranks, strict=True):
                wanted = tir.let(tirx.bitwise_xor(cell[0], bit))
                threshold = tir.let(_float_of(wanted))
                totals = [_int_vector() for _ in range(4)]
                for i, vector in enumerate(vectors):
                    _count(totals[i % 4], vector, threshold)
                # Above infinity are keys of NaN, of which no threshold is made.
                enough = tirx.And(
                    tir.sum_lanes(totals[0][0] + totals[1][0] + (totals[2][0] + totals[3][0])) >= tir.i32(rank),
                    wanted <= tir.i32(_INFINITY),
                )
                B.buffer_store(cell, tirx.Select(enough, wanted, cell[0]), [0])
        B.buffer_store(self.low, tirx.max(self.low[0], tir.i32(_LOWEST)), [0])
        # The rank of the upper one is reached at `high`; one step further it is not.
        step_up = tir.i32(1 << (32 - _SAMPLE_BITS))
        beyond = tirx.Or(self.high[0] > tir.i32(_INFINITY) - step_up, tir.i32(ranks[1]) < 1)
        B.buffer_store(self.high, tirx.Select(beyond, tir.i32(_INFINITY), self.high[0] + step_up), [0])

    def _sample_offsets(self) -> list[tir.Expr]:
        per_stretch = self.rows.size // _LANES
        total = self.rows.count * per_stretch
        offsets = []
        for i in range(_SAMPLE):
            at = (2 * i + 1) * total // (2 * _SAMPLE)
            stretch = self.rows.x.offset(self.row, tir.i32(at // per_stretch), self.rows.per_plane)
            offsets.append(stretch + at % per_stretch * _LANES)
        return offsets

    def _list_between(self) -> None:
        """Pass 1."""
        low, high = tir.let(_float_of(self.low[0])), tir.let(_float_of(self.high[0]))
        B.buffer_store(self.listed, tir.i32(0), [0])
        B.buffer_store(self.above, tir.i32(0), [0])

        def count(x: tir.Expr, _y: tir.Expr, _vector: tir.Expr, real: int) -> None:
            value = tir.let(self.rows.load(self.x, x, real, _LANES))
            missed, below = value < tir.splat(low, _LANES), value < tir.splat(high, _LANES)
            if real < _LANES:
                missed = tirx.Or(missed, tirx.Not(tir.lane_mask(0, real, _LANES)))
            between = tirx.And(tirx.Not(missed), below)
            found = tir.let(tir.count_lanes(between))
            packed = tir.let(tir.compress(value, between))
            # Rarely more than eight; a store of 32 bytes takes half as long as one of 64.
            tir.vstore(self.list, tirx.Shuffle([packed], list(range(8))), self.listed[0], 8)
            with B.If(found > 8), B.Then():
                tir.vstore(self.list, packed, self.listed[0], _LANES)
            B.buffer_store(self.listed, self.listed[0] + found, [0])
            B.buffer_store(self.above, self.above[0] + (tir.i32(_LANES) - tir.count_lanes(missed)), [0])

        self.rows.each_vector(self.row, _LANES, count)
        B.buffer_store(self.above, self.above[0] - self.listed[0], [0])

    def _judge(self, state: tir.Buffer) -> None:
        """Whether the k-th value is in the list; else where to look for it."""
        k = tir.i32(self.k)
        with B.If(self.above[0] >= k):
            with B.Then():
                hopeless = self.high[0] == tir.i32(_INFINITY)
                B.buffer_store(state, tirx.Select(hopeless, tir.i32(_HOPELESS), tir.i32(_LOOKING)), [0])
                B.buffer_store(self.low, self.high[0], [0])
                B.buffer_store(self.high, tir.i32(_INFINITY), [0])
            with B.Else(), B.If(self.above[0] + self.listed[0] >= k):
                with B.Then():
                    B.buffer_store(state, tir.i32(_LISTED), [0])
                with B.Else():
                    B.buffer_store(self.high, self.low[0], [0])
                    B.buffer_store(self.low, tir.i32(_LOWEST), [0])

    def _search(self) -> tir.Buffer:
        """Make `low` the largest key that at least k values reach; the cell that it returns is 1 if exactly k do."""
        # Padding reaches every threshold.
        tir.vstore(self.list, tir.splat(math.nan, _LANES), self.listed[0], _LANES)
        vectors = tir.let(tirx.truncdiv(self.listed[0] + tir.i32(_LANES - 1), tir.i32(_LANES)))
        padding = tir.let(vectors * _LANES - self.listed[0])
        rank = tir.let(tir.i32(self.k) - self.above[0])
        at_low, at_high = _int_cell(), _int_cell(0)  # values of the list that reach the thresholds
        B.buffer_store(at_low, self.listed[0], [0])
        exact = _int_cell()
        B.buffer_store(exact, tirx.Select(at_low[0] == rank, tir.i32(1), tir.i32(0)), [0])
        turn = _int_cell(0)
        # As int64: keys lie up to 2^32 apart.
        apart = _long(self.high[0]) - _long(self.low[0])
        with B.While(tirx.And(exact[0] == 0, apart > _long(tir.i32(1)))):
            middle = tir.let(self._middle(rank, at_low, at_high, turn))
            threshold = tir.let(_float_of(middle))
            total = _int_vector()
            with B.serial(vectors) as i:
                _count(total, tir.vload(self.list, i * _LANES, _LANES), threshold)
            reached = tir.let(tir.sum_lanes(total[0]) - padding)
            with B.If(reached >= rank):
                with B.Then():
                    B.buffer_store(self.low, middle, [0])
                    B.buffer_store(at_low, reached, [0])
                    B.buffer_store(exact, tirx.Select(reached == rank, tir.i32(1), tir.i32(0)), [0])
                with B.Else():
                    B.buffer_store(self.high, middle, [0])
                    B.buffer_store(at_high, reached, [0])
            B.buffer_store(turn, tir.i32(1) - turn[0], [0])
        return exact

    def _middle(self, rank: tir.Expr, at_low: tir.Buffer, at_high: tir.Buffer, turn: tir.Buffer) -> tir.Expr:
        """A key strictly between both: in turn where the counts let one expect it, and half way."""
        apart = tir.let(_long(self.high[0]) - _long(self.low[0]))
        share = (_float(at_low[0] - rank) + tir.f32(0.5)) / _float(at_low[0] - at_high[0])
        expected = tirx.Cast("int64", tirx.Cast("float32", apart) * share)
        expected = tirx.max(tirx.min(expected, apart - _long(tir.i32(1))), _long(tir.i32(1)))
        half = tirx.shift_right(apart, _long(tir.i32(1)))
        return tirx.Cast("int32", _long(self.low[0]) + tirx.Select(turn[0] == 0, expected, half))

    def _keep(self, threshold: tir.Expr) -> None:
        """Pass 2."""

        def keep(x: tir.Expr, y: tir.Expr, _vector: tir.Expr, real: int) -> None:
            value = tir.let(self.rows.load(self.x, x, real, _LANES))
            kept = tirx.Select(value < tir.splat(threshold, _LANES), tir.splat(0.0, _LANES), value)
            tir.vstore_lanes(self.y, kept, y, _LANES, 0, real)

        self.rows.each_vector(self.row, _LANES, keep)


def _int_cell(value: int | None = None) -> tir.Buffer:
    cell = B.alloc_buffer((1,), "int32", scope="global")
    if value is not None:
        B.buffer_store(cell, tir.i32(value), [0])
    return cell


def _int_vector() -> tir.Buffer:
    # Of scope "global", as small buffers that shall become registers must be: see tir.py.
    cell = B.alloc_buffer((1,), f"int32x{_LANES}", scope="global")
    B.buffer_store(cell, tirx.Broadcast(tir.i32(0), _LANES), [0])
    return cell


def _long(value: tir.Expr) -> tir.Expr:
    return tirx.Cast("int64", value)


def _float(value: tir.Expr) -> tir.Expr:
    return tirx.Cast("float32", value)


def _float_of(key: tir.Expr) -> tir.Expr:
    """The float whose key it is: all bits but the sign are inverted in that of a negative one."""
    inverted = tirx.bitwise_and(tirx.shift_right(key, tir.i32(31)), tir.i32(0x7FFFFFFF))
    return tirx.reinterpret("float32", tirx.bitwise_xor(key, inverted))


def _count(total: tir.Buffer, value: tir.Expr, threshold: tir.Expr) -> None:
    """Add one in every lane that reaches the threshold, which NaN does: it is not below it."""
    zeros, ones = (tirx.Broadcast(tir.i32(i), _LANES) for i in (0, 1))
    B.buffer_store(total, total[0] + tirx.Select(value < tir.splat(threshold, _LANES), zeros, ones), [0])
