"""Dense convolution with filters three rows high: four rows at once by minimal filtering, half of the products.

    for strip of groups of four rows of Y, part of the filters:          # shared among threads
        for channel, group:  V = B d, 6 points of the six rows of X that a group reads
        for block of MR filters, block of NR vectors of (group, column):
            for point:  MR x NR accumulators; for channel, kx: NR loads of V, MR broadcasts of U = G g, MR * NR FMAs
            four rows of each vector from the points: A m, bias, residual, activation

Winograd's F(4, 3) in one dimension (formats/toom_cook.py): 6 products for 12; B and A hold small integers, so that
float32 loses few units in the last place. In two dimensions there would be a quarter of the products, but columns are
in the lanes, and errors would multiply as well. Groups lie one behind the other as rows do in X and Y, zero columns
between them, so that a vector may span several and small images leave few lanes empty. A strip whose input is huge or
not finite is computed tap by tap: there infinity and NaN stay with the windows that they are in.

Requires: AVX-512, one group, stride 1, filters 3 high, X in Planes, Y in Planes or PlaneTiles; weights packed
[M / MR][6 points, middle row of taps][channel][kx][MR]: 7 numbers for 3 weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sparsetvm.schedules.base import Packed, Template
from sparsetvm.schedules.x86.arguments import initial_sums
from sparsetvm.schedules.x86.geometry import conv_of, grid_of, supports_taps, tap_geometry

from sparsetvm.analysis.roofline import LEAST_HALVED_K, may_halve_products
from sparsetvm.core.config import Config
from sparsetvm.core.layout import Planes
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload
from sparsetvm.formats.toom_cook import HUGE, HUGE_WEIGHT, OUTPUTS, filter_matrix
from sparsetvm.space.knobs import Ordered
from sparsetvm.space.space import Space

HIGH = 3  # rows of taps
POINTS = HIGH + OUTPUTS - 1
PLANES = POINTS + 1  # of packed weights: the middle row of taps is behind the points
_LANES = 16
_WORTH_IT = 0.75  # share of the products of the other dense templates, above which these are the default
# Clocks, about: the points of a vector; what MR x NR FMAs take longer; the weights of a filter from L3.
_TRANSFORM, _STEP, _WEIGHTS = 32, 2, 2
_FILTERS = (4, 6, 8, 12, 14, 16, 24)
_VECTORS = (1, 2, 3, 4, 5)
_GROUPS = (1, 2, 3, 4, 6, 8, 14, 28)


class DenseWinograd(Template):
    """Template x86.dense_winograd."""

    name = "x86.dense_winograd"
    version = 1
    dense = True

    def matches(self, workload: Workload, target: Target) -> bool:
        lin = workload.layout_in
        if not may_halve_products(workload, target) or not isinstance(lin, Planes):
            return False
        # A vector begins in the image, and reads no more than one row ahead.
        conv = conv_of(workload)
        wide = lin.row_stride >= 4 and conv.kernel[1] <= lin.row_stride and conv.out_height >= 2
        return wide and supports_taps(workload)

    def preferred(self, workload: Workload, target: Target) -> bool:
        conv = conv_of(workload)
        if workload.m < _LANES or workload.k < LEAST_HALVED_K:
            return False
        lout, strips = grid_of(workload), strips_of(workload, self.default(workload, target))
        computed = POINTS * sum(vectors_of(groups, lout.row_stride) for groups in strips) * _LANES
        pixels = conv.out_height * conv.out_width
        return computed <= _WORTH_IT * HIGH * min(lout.tiles * _LANES, pixels * 1.1)

    def space(self, workload: Workload, target: Target) -> Space:
        total = -(-conv_of(workload).out_height // OUTPUTS)
        groups = tuple(n for n in _GROUPS if n < total)
        return Space(
            self.name,
            (Ordered("mr", _FILTERS), Ordered("nr", _VECTORS), Ordered("groups", (*groups, total))),
        )

    def default(self, workload: Workload, target: Target) -> Config:
        conv, row = conv_of(workload), grid_of(workload).row_stride
        sizes = [int(n) for n in self.space(workload, target).knobs[2].values]
        bytes_of_a_group = 4 * POINTS * conv.in_channels * row
        configs = []
        for groups in [n for n in sizes if n * bytes_of_a_group <= target.l2] or sizes[:1]:
            wide = vectors_of(_strips(sizes[-1], groups)[0], row)
            # Few columns: all of them at once, so that the weights are read once.
            nr = wide if wide <= 4 else min((3, 4), key=lambda n: (-wide % n, n))
            configs += [Config.of(self.name, mr=mr, nr=nr, groups=groups) for mr in _FILTERS if fits(mr, nr)]
        return min(reversed(configs), key=lambda config: _clocks(workload, config, target.threads))

    def writes_in_place(self, workload: Workload, config: Config) -> bool:
        return workload.epilogue.residual

    def pack(
        self, weight: np.ndarray, bias: np.ndarray | None, workload: Workload, config: Config, target: Target
    ) -> Packed:
        conv, mr = conv_of(workload), filters_at_once(workload, config)
        taps = weight.astype(np.float64).reshape(workload.m, conv.in_channels, *conv.kernel)
        with np.errstate(invalid="ignore"):
            u = np.einsum("py,mcyx->pcxm", filter_matrix(HIGH), taps).reshape(POINTS, -1, workload.m)
        small = bool((np.abs(u) < HUGE_WEIGHT).all())  # False for NaN
        # The outer rows of taps are points, times a power of two; where all is done by taps, they are what counts.
        planes = np.concatenate([u, taps[:, :, 1].transpose(1, 2, 0).reshape(1, -1, workload.m)])
        planes[0] = taps[:, :, 0].transpose(1, 2, 0).reshape(-1, workload.m) * filter_matrix(HIGH)[0, 0]
        planes[POINTS - 1] = taps[:, :, 2].transpose(1, 2, 0).reshape(-1, workload.m)
        blocks = [planes[:, :, first : first + mr].ravel() for first in range(0, workload.m, mr)]
        limit = np.full(1, HUGE if small else -1.0, np.float32)
        with np.errstate(over="ignore"):
            packed = np.concatenate(blocks).astype(np.float32)
        return Packed((packed, initial_sums(bias, workload.m), limit, tap_geometry(workload).taps[0].astype(np.int32)))

    def kernel(self, workload: Workload, config: Config, packed: Packed, target: Target, symbol: str) -> Any:
        from sparsetvm.schedules.x86.winograd_kernel import WinogradKernel

        return WinogradKernel(workload, config, packed, target).build(symbol)


def vectors_of(groups: int, row_stride: int) -> int:
    """Vectors that hold the columns of so many groups, one behind the other."""
    return -(-groups * row_stride // _LANES)


def strips_of(workload: Workload, config: Config) -> list[int]:
    """Groups of each strip, as even as they can be."""
    return _strips(-(-conv_of(workload).out_height // OUTPUTS), config.int("groups"))


def _strips(total: int, most: int) -> list[int]:
    count = -(-total // most)
    return [total // count + (i < total % count) for i in range(count)]


def parts_of(workload: Workload, config: Config, strips: int, groups: int, threads: int) -> tuple[int, int]:
    """Parts of the filters that give threads even work on strips of so many groups, and the clocks of the thread that
    has most of it, for each channel of X. Every part transforms the input of its strip anew.
    """
    mr, vectors = filters_at_once(workload, config), vectors_of(groups, grid_of(workload).row_stride)
    blocks, steps = -(-workload.m // mr), POINTS * conv_of(workload).kernel[1]
    of_block = steps * (mr * vectors + _STEP * -(-vectors // config.int("nr"))) + _WEIGHTS * mr

    def clocks(parts: int) -> int:
        return -(-strips * parts // threads) * (-(-blocks // parts) * of_block + _TRANSFORM * vectors)

    counts = [1] if threads == 1 else sorted({-(-blocks // each) for each in range(1, blocks + 1)})
    best = min(counts, key=clocks)
    return best, clocks(best)


def _clocks(workload: Workload, config: Config, threads: int) -> int:
    strips, batch = strips_of(workload, config), grid_of(workload).batch
    return sum(parts_of(workload, config, batch * strips.count(n), n, threads)[1] for n in set(strips))


def filters_at_once(workload: Workload, config: Config) -> int:
    """MR: no more than there are, or than have registers beside the config's vectors."""
    mr = config.int("mr")
    while not fits(mr, config.int("nr")):
        mr -= 1
    return min(workload.m, mr)


def fits(mr: int, nr: int) -> bool:
    """Whether the accumulators, NR vectors of V and a weight fit the registers, or LLVM spills."""
    return (mr + 1) * nr + 1 <= 32
