"""The k largest values of each row; all others become zero.

    for each row: keys, integers in the order of the floats
                  32 times: do k keys reach the threshold with its next bit set?
                  y = x where key >= threshold

A row is read 32 times, from L1 or L2, one compare for each vector: bisection over the bits of a float needs no sorting
and no branch that depends on the data. NaN counts as the largest value and stays NaN; the two zeros are equal. With
AVX-512 rows that are long enough are searched by sample (winners_by_sample.py), and this way is for what that leaves.
"""

from __future__ import annotations

from typing import Literal

from sparsetvm.schedules.x86 import tir
from sparsetvm.schedules.x86.remainder.stretches import Stretches, stretches_of
from sparsetvm.schedules.x86.remainder.winners_by_sample import SampledRow, worth_a_sample
from tvm import tirx
from tvm.tirx.script import builder as B

from sparsetvm.core.layout import PLAIN, AnyLayout
from sparsetvm.core.target import Target

_BITS, _SIGN = 0x7FFFFFFF, -(1 << 31)
_CHAINS = 4


def k_winners_kernel(
    shape: tuple[int, ...],
    k: int,
    ties: Literal["first", "all"],
    target: Target,
    symbol: str,
    *,
    axis: int = -1,
    layouts: tuple[AnyLayout, AnyLayout] = (PLAIN, PLAIN),
) -> tir.Expr:
    """PrimFunc (X, Y) of the given logical shape; a row is everything from `axis` on and has at least k values.

    ties: of values equal to the k-th, "first" keeps those with the lowest index until there are k, "all" keeps all.
    layouts: of X and Y, plain, or for images with axis 1 Planes with phases (1, 1).
    """
    source, out = layouts
    rows = stretches_of(shape, axis % len(shape), source, out, target.lanes)
    with tir.prim_func(symbol) as builder:
        x, y = tir.flat_args(X=source.physical_shape(shape), Y=out.physical_shape(shape))
        with tir.outer(rows.rows, target.threads) as row:
            rows.zero_around(y, row, target.lanes)
            by_bits = _Row(x, y, row, rows, k, target.lanes)
            if worth_a_sample(rows, target):
                found = SampledRow(x, y, row, rows, k).write(ties)
                with B.If(found == 0), B.Then():
                    by_bits.write(ties)
            else:
                by_bits.write(ties)
    return builder.get()


class _Row:
    """One row of n values, searched bit by bit."""

    def __init__(self, x: tir.Buffer, y: tir.Buffer, row: tir.Expr, rows: Stretches, k: int, lanes: int) -> None:
        self.x, self.y, self.row, self.rows, self.k, self.lanes = x, y, row, rows, k, lanes
        self.vectors = rows.count * -(-rows.size // lanes)

    def write(self, ties: str) -> None:
        self.keys = B.alloc_buffer((self.vectors * self.lanes,), "int32", scope="local")
        self._write_keys()
        kth = self._kth_key()
        if ties == "all":
            self._keep(kth)
            return
        above = self._count(kth, strictly=True)
        equal = self._count(kth, strictly=False)
        room = B.Bind(equal[0] - tirx.const(self.k, "int32"))
        with B.If(room == 0):
            with B.Then():
                self._keep(kth)
            with B.Else():
                self._keep_first(kth, above)

    def _ints(self, value: int) -> tir.Expr:
        return tirx.Broadcast(tir.i32(value), self.lanes)

    def _write_keys(self) -> None:
        """Keys of a row; behind the end of a stretch the smallest integer, which no float has."""

        def write(x: tir.Expr, _: tir.Expr, vector: tir.Expr, real: int) -> None:
            value = tir.let(tir.vload_lanes(self.x, x, self.lanes, 0, real))
            bits = tir.let(tir.bits(value, f"int32x{self.lanes}"))
            flipped = tirx.bitwise_xor(
                bits, tirx.bitwise_and(tirx.shift_right(bits, self._ints(31)), self._ints(_BITS))
            )
            key = tirx.Select(value == tir.splat(0.0, self.lanes), self._ints(0), flipped)
            key = tirx.Select(tirx.isnan(value), self._ints(_BITS), key)
            if real < self.lanes:
                key = tirx.Select(tir.lane_mask(0, real, self.lanes), key, self._ints(_SIGN))
            B.buffer_store(self.keys, key, [tirx.Ramp(vector * self.lanes, 1, self.lanes)])

        self.rows.each_vector(self.row, self.lanes, write)

    def _kth_key(self) -> tir.Buffer:
        """The largest integer that at least k keys reach, a cell of one int32: its bits from the highest on."""
        found = B.alloc_buffer((1,), "int32", scope="local")
        B.buffer_store(found, tir.i32(_SIGN), [0])
        # The highest bit of a key in offset binary is that of its sign: 0 reaches what is not negative.
        with B.serial(32) as step:
            wanted = B.alloc_buffer((1,), "int32", scope="local")
            bit = tirx.shift_left(tir.i32(1), tir.i32(31) - step)
            B.buffer_store(wanted, tirx.bitwise_xor(found[0], bit), [0])
            reached = self._count(wanted, strictly=False)
            B.buffer_store(found, tirx.Select(reached[0] >= tir.i32(self.k), wanted[0], found[0]), [0])
        return found

    def _count(self, bound: tir.Buffer, *, strictly: bool) -> tir.Buffer:
        """How many keys are above `bound`, or reach it, a cell of one int32."""
        chains = min(_CHAINS, self.vectors)
        # Of scope "global", as small buffers that shall become registers must be: see tir.py.
        totals = [B.alloc_buffer((1,), f"int32x{self.lanes}", scope="global") for _ in range(chains)]
        limit = tirx.Broadcast(bound[0], self.lanes)

        def add(total: tir.Buffer, vector: tir.Expr) -> None:
            keys = self.keys[tirx.Ramp(vector * self.lanes, 1, self.lanes)]
            reached = keys > limit if strictly else keys >= limit
            B.buffer_store(total, total[0] + tirx.Select(reached, self._ints(1), self._ints(0)), [0])

        for total in totals:
            B.buffer_store(total, self._ints(0), [0])
        with B.serial(self.vectors // chains) as i:
            for chain, total in enumerate(totals):
                add(total, i * chains + chain)
        for rest in range(self.vectors // chains * chains, self.vectors):
            add(totals[0], rest)
        total = totals[0][0]
        for other in totals[1:]:
            total = total + other[0]
        spread = B.alloc_buffer((self.lanes,), "int32", scope="local")
        B.buffer_store(spread, total, [tirx.Ramp(0, 1, self.lanes)])
        count = B.alloc_buffer((1,), "int32", scope="local")
        B.buffer_store(count, tir.i32(0), [0])
        for lane in range(self.lanes):
            B.buffer_store(count, count[0] + spread[lane], [0])
        return count

    def _keep(self, kth: tir.Buffer) -> None:
        def keep(x: tir.Expr, y: tir.Expr, vector: tir.Expr, real: int) -> None:
            kept = self.keys[tirx.Ramp(vector * self.lanes, 1, self.lanes)] >= tirx.Broadcast(kth[0], self.lanes)
            value = tir.vload_lanes(self.x, x, self.lanes, 0, real)
            value = tirx.Select(kept, value, tir.splat(0.0, self.lanes))
            tir.vstore_lanes(self.y, value, y, self.lanes, 0, real)

        self.rows.each_vector(self.row, self.lanes, keep)

    def _keep_first(self, kth: tir.Buffer, above: tir.Buffer) -> None:
        """One value after the other: equal ones stay until there are k."""
        left = B.alloc_buffer((1,), "int32", scope="local")
        B.buffer_store(left, tir.i32(self.k) - above[0], [0])
        rows, padded = self.rows, -(-self.rows.size // self.lanes) * self.lanes
        with B.serial(rows.count) as stretch:
            x = B.Bind(rows.x.offset(self.row, stretch, rows.per_plane))
            y = B.Bind(rows.y.offset(self.row, stretch, rows.per_plane))
            with B.serial(rows.size) as i:
                key = self.keys[stretch * padded + i]
                equal = tirx.And(key == kth[0], left[0] > 0)
                value = tirx.Select(tirx.Or(key > kth[0], equal), self.x[x + i], tir.f32(0.0))
                B.buffer_store(self.y, value, [y + i])
                B.buffer_store(left, left[0] - tirx.Select(key == kth[0], tir.i32(1), tir.i32(0)), [0])
