"""The columns of an image row that the windows of its outputs read, one vector a tap.

Stride 2, taps -1, 0 and 1, four lanes:

    loaded    -1  0  1  2 |  3  4  5  6 | ...
    phase 0   -1  1  3  5 |  7  9 ...           tap -1; tap 1 is the same one lane further on
    phase 1    0  2  4  6 |  8 10 ...           tap 0
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from sparsetvm.schedules.x86 import tir
from tvm import tirx


class WindowColumns:
    """Vectors of the columns (x + i) * step + dx of one row, for outputs x + i < width and the taps dx.

    load(c): the vector of columns c ... c + lanes - 1. Each vector is loaded once, however many taps and outputs share
    it (a load across two cache lines costs two), and only if an output needs one of its columns.
    share: with step 1, cut the taps from shared vectors as well; a load for each of them otherwise.

    Lane i of a tap belongs to output x + order[i]; `ordered` brings a result into the order of memory. (vshufps, which
    splits two phases, stays inside 128 bits: one permutation of a result is cheaper than one of every tap.)
    """

    def __init__(
        self,
        load: Callable[[int], tir.Expr],
        step: int,
        taps: Sequence[int],
        width: int,
        lanes: int,
        share: bool = True,
    ) -> None:
        self.load, self.step, self.width, self.lanes = load, step, width, lanes
        self.first, self.last = min(taps), max(taps)
        self.direct = step == 1 and not share
        half = lanes // 2
        pairs = [(i, i + half) for i in range(0, half, 2)]
        self.order = [x + i for pair in pairs for x in pair for i in (0, 1)] if step == 2 else list(range(lanes))
        self.bound: dict[Hashable, tir.Expr] = {}

    def tap(self, x: int, dx: int) -> tir.Expr:
        """The vector of tap dx for the outputs from x on, a multiple of lanes; lanes past `width` are unspecified."""
        if self.direct:
            return self._loaded(x + dx)
        shift, phase = divmod(dx - self.first, self.step)
        start = shift % self.lanes
        block = x + shift - start
        return self._shifted(block, phase, start, start + self.width - x) if start else self._phase(block, phase)

    def ordered(self, value: tir.Expr) -> tir.Expr:
        """`value`, computed from taps, with output x + i in lane i."""
        if self.step != 2:
            return value
        return tirx.Shuffle([value], [self.order.index(i) for i in range(self.lanes)])

    def _shifted(self, x: int, phase: int, start: int, end: int) -> tir.Expr:
        """Outputs from x + start on of a phase, up to x + end."""
        blocks = [self._phase(x, phase)] + ([self._phase(x + self.lanes, phase)] if end > self.lanes else [])
        wanted = [divmod(start + i, self.lanes) for i in self.order]
        lanes = [block * self.lanes + self.order.index(i) for block, i in wanted]
        return self._shuffled((x, phase, start), blocks, lanes)

    def _phase(self, x: int, phase: int) -> tir.Expr:
        """Columns (x + i) * step + first + phase."""
        begin = x * self.step + self.first
        if self.step == 1:
            return self._loaded(begin)
        # The last column of the phase that an output reads.
        last = (self.width - 1) * self.step + self.last - (self.last - self.first - phase) % self.step
        count = min(self.step, (last - begin) // self.lanes + 1)
        vectors = [self._loaded(begin + v * self.lanes) for v in range(count)]
        return self._shuffled((x, phase), vectors, [phase + i * self.step for i in self.order])

    def _shuffled(self, key: Hashable, vectors: list[tir.Expr], lanes: list[int]) -> tir.Expr:
        # Lanes behind the vectors are unspecified ones.
        size = len(vectors) * self.lanes
        return self._once(key, lambda: tirx.Shuffle(vectors, [i if i < size else i % self.lanes for i in lanes]))

    def _loaded(self, column: int) -> tir.Expr:
        return self._once(column, lambda: self.load(column))

    def _once(self, key: Hashable, make: Callable[[], tir.Expr]) -> tir.Expr:
        if key not in self.bound:
            self.bound[key] = tir.let(make())
        return self.bound[key]
