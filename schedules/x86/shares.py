"""How the threads of a layer share its work: each takes some of the rows, with their code, of some of the tiles.

By tiles alone every core fetches all of the code, which with many threads is what a layer takes. By rows alone every
core reads all of X, most of it from the caches of others, and the memory that all of them have read costs more to write
the next time: each of their copies has to go first. In between, R parts of the rows by T parts of the tiles read and
copy R times and fetch a share of 1 / R.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sparsetvm.schedules.x86.geometry import TapGeometry, tap_geometry

from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload

_LEAST_ROWS = 8  # of a part
# Nanoseconds, from all layers of two networks on 8 and 16 cores of a Xeon (family 6, model 207): an FMA of a vector, a
# byte of code and weights that comes from L3, a line that another core has written, and a line that is written where
# another core has a copy, for each of these.
_FMA, _CODE_BYTE, _READ, _TAKE = 0.4, 0.065, 6.0, 6.0
BYTES_PER_NNZ = 14  # of pattern in code: instructions and weights, about


@dataclass(frozen=True)
class Shares:
    """Parts of the rows and of the tiles; a worker has one of each."""

    rows: int
    tiles: int

    @property
    def workers(self) -> int:
        return self.rows * self.tiles


def shares_of(rows: int, geometry: TapGeometry, threads: int) -> Shares:
    """The shares of `threads` where the rows are in `rows` parts."""
    return Shares(rows, max(1, min(threads // rows, geometry.total_tiles)))


def row_parts(threads: int) -> tuple[int, ...]:
    """Numbers of parts to choose from: powers of two, and all threads."""
    return (*(1 << i for i in range(threads.bit_length()) if 1 << i < threads), threads)


def default_row_parts(workload: Workload, target: Target) -> int:
    """The number of parts of the rows with which the layer takes the least time by a coarse model."""
    geometry = tap_geometry(workload)
    fitting = [r for r in row_parts(target.threads) if r == 1 or workload.m >= _LEAST_ROWS * r]
    return min(fitting, key=lambda rows: _estimate(workload, shares_of(rows, geometry, target.threads), geometry))


def _estimate(workload: Workload, shares: Shares, geometry: TapGeometry) -> float:
    """Nanoseconds of the busiest worker."""
    area = math.prod(workload.conv.kernel) if workload.conv else 1
    tiles = -(-geometry.total_tiles // shares.tiles)
    non_zeros, others = workload.nnz / shares.rows, shares.rows - 1
    lines = geometry.lanes * 4 / 64
    read = workload.k / area * tiles * lines * others / shares.rows
    taken = workload.m / shares.rows * tiles * lines * others
    code = _CODE_BYTE * BYTES_PER_NNZ * non_zeros
    return max(_FMA * non_zeros * tiles, code) + _READ * read + _TAKE * taken
