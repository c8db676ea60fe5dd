"""Dense convolution of stride 2 on few input channels, four rows at once by minimal filtering: half of the products.

    for tile of four rows of Y:
        for row phase, channel, column phase:  V = B d, 7 points of the input rows
        for 16 columns, F filters:  7 x F accumulators
            for row phase, channel, kx, point:  1 load of V, F FMAs with weights U = G g
            four rows of each filter from the points: A m, bias, activation

Of a filter 7 high and stride 2, the rows of one parity meet 4 rows of taps, those of the other 3. Both are sums of
products of stride 1, so both are done by the same 7 points (formats/toom_cook.py), whose sums then add up before they
are transformed back: 14 products for 28, which take four fifths of the time. A tile whose input is huge or not
finite is computed tap by tap: there infinity and NaN stay with the windows that they are in.

Requires: AVX-512, one group, stride 2, filters 5 to 8 high, at most 4 input channels, X in Planes of that stride's
phases, Y in Planes, no residual.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sparsetvm.schedules.base import Packed, Template
from sparsetvm.schedules.x86.arguments import initial_sums, layer_args
from sparsetvm.schedules.x86.geometry import conv_of, supports_taps, tap_geometry

from sparsetvm.core.config import Config
from sparsetvm.core.layout import Planes
from sparsetvm.core.target import Target
from sparsetvm.core.workload import ConvGeometry, Workload
from sparsetvm.formats.toom_cook import HUGE, HUGE_WEIGHT, OUTPUTS, filter_matrix, rows_of_parities
from sparsetvm.space.knobs import Ordered
from sparsetvm.space.space import Space

_LANES = 16
_MOST_CHANNELS = 4
_FILTERS = (2, 3, 4)  # 7 accumulators each


class DenseMinimal(Template):
    """Template x86.dense_minimal."""

    name = "x86.dense_minimal"
    version = 1
    dense = True

    def matches(self, workload: Workload, target: Target) -> bool:
        conv, lin, lout = workload.conv, workload.layout_in, workload.layout_out
        if target.isa != "avx512" or conv is None or not isinstance(lin, Planes) or not isinstance(lout, Planes):
            return False
        few = conv.groups == 1 and conv.in_channels <= _MOST_CHANNELS and not workload.epilogue.residual
        shape = conv.stride == (2, 2) and conv.dilation == (1, 1) and 5 <= conv.kernel[0] <= 8
        return supports_taps(workload) and few and shape and conv.out_width >= _LANES

    def space(self, workload: Workload, target: Target) -> Space:
        return Space(self.name, (Ordered("filters", _FILTERS),))

    def default(self, workload: Workload, target: Target) -> Config:
        return Config.of(self.name, filters=_FILTERS[-1])

    def pack(
        self, weight: np.ndarray, bias: np.ndarray | None, workload: Workload, config: Config, target: Target
    ) -> Packed:
        conv, filters = conv_of(workload), config.int("filters")
        short = -workload.m % filters
        taps = np.pad(weight.astype(np.float64), ((0, short), (0, 0))).reshape(-1, conv.in_channels, *conv.kernel)
        to_points = filter_matrix(taps_of_a_phase(conv))
        phases = [np.einsum("py,mcyx->mcxp", to_points, rows) for rows in rows_of_parities(taps)]
        # [filters / F][row phase][channel][kx][point][F]
        points_first = np.stack(phases, 1).reshape(-1, filters, len(phases), *phases[0].shape[1:])
        u = np.ascontiguousarray(points_first.transpose(0, 2, 3, 4, 5, 1), np.float32)
        start = np.pad(initial_sums(bias, workload.m), (0, short))
        small = bool((np.abs(u) < HUGE_WEIGHT).all())  # False for NaN
        limit = np.full(1, HUGE if small else -1.0, np.float32)
        plain = np.ascontiguousarray(weight, np.float32).ravel()
        return Packed((u.ravel(), plain, start, limit, tap_geometry(workload).taps[0].astype(np.int32)))

    def kernel(self, workload: Workload, config: Config, packed: Packed, target: Target, symbol: str) -> Any:
        return _MinimalKernel(workload, config, packed, target).build(symbol)


def taps_of_a_phase(conv: ConvGeometry) -> int:
    """Rows of taps that the rows of a parity meet at most."""
    return -(-conv.kernel[0] // 2)


def row_phases(conv: ConvGeometry) -> list[tuple[int, int]]:
    """(first row of taps, number of them) of the rows of each parity."""
    return [(first, len(range(first, conv.kernel[0], 2))) for first in range(2)]


class _MinimalKernel:
    """Builds the TIR; the fields are what all loops share."""

    def __init__(self, workload: Workload, config: Config, packed: Packed, target: Target) -> None:
        from sparsetvm.schedules.x86.remainder.images import Images

        self.workload, self.packed, self.threads = workload, packed, target.threads
        self.conv, self.g, self.filters = conv_of(workload), tap_geometry(workload), config.int("filters")
        shape = (self.g.batch, workload.m, self.conv.out_height, self.conv.out_width)
        self.out = Images(workload.layout_out, shape, _LANES)
        self.high = taps_of_a_phase(self.conv)
        self.points = self.high + OUTPUTS - 1  # and as many input rows
        self.columns = self.conv.out_width + -(-self.conv.kernel[1] // 2) - 1  # of a phase that are read
        # An odd number of lines, or the rows of a column share a few sets of L1.
        self.stride = (-(-self.columns // _LANES) | 1) * _LANES

    def build(self, symbol: str) -> Any:
        from sparsetvm.schedules.x86 import tir
        from tvm.tirx.script import builder as tb

        tiles = -(-self.out.height // OUTPUTS)
        with tir.prim_func(symbol) as ib:
            self.x, _, arrays, self.y = layer_args(self.workload, self.packed)
            self.u, self.w, self.b, self.limit, self.taps = arrays
            with tir.outer(self.out.planes, self.threads) as plane:
                self._zeros(plane)
            with tir.outer(self.g.batch * tiles, self.threads) as at:
                self.image, self.first_row = at // tiles, at % tiles * OUTPUTS
                self.v = tir.scratch(2 * self.conv.in_channels * 2 * self.points * self.stride)
                largest = self._transform()
                with tb.If(largest < self.limit[0]):
                    with tb.Then():
                        self._each_vector(self._by_points, -(-self.workload.m // self.filters))
                    with tb.Else():
                        self._each_vector(self._by_taps, self.workload.m)
        return ib.get()

    def _zeros(self, plane: Any) -> None:
        """All of a plane of Y that is no pixel."""
        from sparsetvm.schedules.x86 import tir
        from tvm.tirx.script import builder as tb

        out = self.out
        out.zero_borders(self.y, plane)
        with tb.serial(out.height) as row:
            behind = out.row(plane, row) + out.width
            tir.vstore_lanes(self.y, tir.splat(0.0, _LANES), behind, _LANES, 0, out.row_stride - out.width)

    def _each_vector(self, body: Any, count: int) -> None:
        """Call body(first column, i) for i < count; the last vector of columns begins early enough to be whole."""
        from sparsetvm.schedules.x86 import tir
        from tvm import tirx
        from tvm.tirx.script import builder as tb

        with tb.serial(count) as i, tb.serial(-(-self.out.width // _LANES)) as vector:
            body(tb.Bind(tirx.min(vector * _LANES, tir.i32(self.out.width - _LANES))), i)

    def _transform(self) -> Any:
        """V of the input rows of a tile; returns their largest magnitude, or NaN."""
        from sparsetvm.schedules.x86 import tir
        from sparsetvm.schedules.x86.minimal import larger_magnitude, largest_lane, to_points
        from tvm import tirx
        from tvm.tirx.script import builder as tb

        taps = self.g.taps[0].reshape(self.conv.in_channels, *self.conv.kernel)
        largest = tir.Registers(1, _LANES, fill=0.0)
        start = self.g.x0 + self.image * self.g.x_batch
        for phase, (ky, count) in enumerate(row_phases(self.conv)):
            # Below the last row that an output reads, that one again: what the points make of it is never stored.
            last = self.out.height - 1 + count - 1
            rows = [tb.Bind(tirx.min(self.first_row + i, tir.i32(last))) for i in range(self.points)]
            for channel in range(self.conv.in_channels):
                for kx in range(min(2, self.conv.kernel[1])):
                    base = start + int(taps[channel, ky, kx])
                    to = ((phase * self.conv.in_channels + channel) * 2 + kx) * self.points * self.stride
                    with tb.serial(-(-self.columns // _LANES)) as i:
                        column = tb.Bind(tirx.min(i * _LANES, tir.i32(self.columns - _LANES)))
                        at = [base + row * self.out.row_stride + column for row in rows]
                        loaded = [tir.let(tir.vload(self.x, place, _LANES)) for place in at]
                        for value in loaded:
                            largest[0] = larger_magnitude(value, largest[0], _LANES)
                        for p, value in enumerate(to_points(loaded, self.high, _LANES)):
                            tir.vstore(self.v, value, column + (to + p * self.stride), _LANES)
        return largest_lane(tir.let(largest[0]), _LANES)

    def _by_points(self, column: Any, block: Any) -> None:
        """Four rows of 16 columns of some filters."""
        from sparsetvm.schedules.x86 import tir
        from sparsetvm.schedules.x86.minimal import from_points
        from tvm.tirx.script import builder as tb

        count, width = self.filters, self.conv.kernel[1]
        acc = tir.Registers(self.points * count, _LANES, fill=0.0)
        pairs = 2 * self.conv.in_channels
        with tb.serial(pairs) as pair:
            for kx in range(width):
                u0 = ((block * pairs + pair) * width + kx) * self.points * count
                v0 = (pair * 2 + kx % 2) * self.points * self.stride + column + kx // 2
                for p in range(self.points):
                    value = tir.let(tir.vload(self.v, v0 + p * self.stride, _LANES))
                    for f in range(count):
                        i = p * count + f
                        acc[i] = acc[i] + tir.splat(self.u[u0 + i], _LANES) * value
        for f in range(count):
            rows = from_points([acc[p * count + f] for p in range(self.points)], self.high, _LANES)
            for r, value in enumerate(rows):
                self._store(block * count + f, r, column, value, self.workload.m % count != 0)

    def _by_taps(self, column: Any, channel: Any) -> None:
        """Four rows of 16 columns of one filter, product by product."""
        from sparsetvm.schedules.x86 import tir
        from tvm import tirx
        from tvm.tirx.script import builder as tb

        start = self.g.x0 + self.image * self.g.x_batch + column
        rows = [tb.Bind(tirx.min(self.first_row + r, tir.i32(self.out.height - 1))) for r in range(OUTPUTS)]
        acc = tir.Registers(OUTPUTS, _LANES, fill=0.0)
        with tb.serial(self.workload.k) as k:
            weight = tir.let(tir.splat(self.w[channel * self.workload.k + k], _LANES))
            for r, row in enumerate(rows):
                x = tir.vload(self.x, start + self.taps[k] + row * self.out.row_stride, _LANES)
                acc[r] = acc[r] + weight * x
        for r in range(OUTPUTS):
            self._store(channel, r, column, acc[r], False)

    def _store(self, channel: Any, row: int, column: Any, value: Any, may_be_none: bool) -> None:
        from sparsetvm.schedules.x86 import tir
        from tvm import tirx
        from tvm.tirx.script import builder as tb

        m, e, y = self.workload.m, self.workload.epilogue, self.first_row + row

        def store() -> None:
            total = tir.let(value + tir.splat(self.b[channel], _LANES))
            total = tir.let(tir.activated(total, e.activation, e.low, e.high, _LANES))
            tir.vstore(self.y, total, self.out.row(self.image * m + channel, y) + column, _LANES)

        conditions = [channel < m] if may_be_none else []
        conditions += [y < self.out.height] if self.out.height % OUTPUTS else []
        if not conditions:
            store()
            return
        with tb.If(tirx.all(*conditions)), tb.Then():
            store()
