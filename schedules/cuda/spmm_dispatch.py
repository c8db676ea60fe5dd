"""SpMM with a column of X read once for several rows: entries jump to the code of their row (spmm_dispatch.cuh).

    for (row tile, run of 32 * c positions):             # one block; a cluster of `parts` blocks shares K
        for chunk of K: a warp of its own copies X of the chunk and its entries -> shared memory
            warp of `rows` rows: for column that any of them uses: x = X[column]
                for entry of the column: jump to sum[row] += value * x

Requires: rows of X that are flat positions (products, 1x1 convolutions of one group), many positions, long K.

cuda.spmm_data reads X for every entry and is bound by those reads. Here a warp of 8 rows at 90 % needs 0.71 reads an
entry (a column with any entry, 1 - 0.9^8, stands for 0.8 entries), at the price of a jump of about 100 clocks, which
other warps and many positions a lane hide. More rows need more code than the nearest instruction cache holds: 16 were
slower than 8 on an H200.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sparsetvm.schedules.base import Packed, Template
from sparsetvm.schedules.cuda.epilogue import bias_array, epilogue_defines
from sparsetvm.schedules.cuda.geometry import flat_geometry
from sparsetvm.schedules.cuda.launch import Launch
from sparsetvm.schedules.cuda.spmm_data import SpmmData
from sparsetvm.schedules.cuda.spmm_data_model import CLUSTERED
from sparsetvm.schedules.cuda.windows import aligned_rows

from sparsetvm.core.config import Config
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload
from sparsetvm.formats.dispatch_loop import LANES, dispatch_loop, row_bytes
from sparsetvm.formats.dispatch_stream import DispatchStream, pack_dispatch_stream
from sparsetvm.space.knobs import Choice, Ordered
from sparsetvm.space.space import Space

_FEWEST_POSITIONS, _SHORTEST = 192, 64  # positions, columns of W: with fewer another template is better
_BARRIERS = 128  # bytes of shared memory in front of the stages
_MOST_STAGES = 4
_COPIERS = 4  # warps; two copy half as fast
_FLOATS = {8: 144, 16: 72}  # most sums and floats of X of a thread in a block of so many warps: no spills

# Clocks, fitted to 89 measurements on an H200 (512 to 4096 squared, 90 and 95 %, 1024 positions): within 8 %.
_JUMP, _SHARE = 57.0, 0.5  # of an entry; of each warp and float of X that share a multiprocessor with it
_ROW_COPY = 71.0  # of the copy engine for a row of X
_ASYNC_BYTES, _ASYNC_SHARE = 30.7, 2.25  # bytes a clock; what copiers take from an entry, for each warp
_OUTPUT_BYTES = 16.0  # a clock
_START, _CLUSTER = 2130.0, 2800.0
_NORM, _UNEVEN = 2.55, 1.05


class SpmmDispatch(Template):
    """Template cuda.spmm_dispatch."""

    name = "cuda.spmm_dispatch"
    version = 1

    def matches(self, workload: Workload, target: Target) -> bool:
        if not SpmmData().matches(workload, target) or workload.k < _SHORTEST:
            return False
        g = flat_geometry(workload)
        return len(g.taps) == 1 and aligned_rows(g) and g.positions >= _FEWEST_POSITIONS

    def space(self, workload: Workload, target: Target) -> Space:
        return Space(
            self.name,
            (
                *(Ordered("rows", (4, 8)), Ordered("c", (8, 16)), Ordered("warps", (8, 16))),
                *(Ordered("chunk", (32, 64)), Ordered("parts", (1, 2, 4)), Choice("copy", ("bulk", "async"))),
            ),
        )

    def default(self, workload: Workload, target: Target) -> Config:
        """The config with the smallest estimate; of equal ones the one with the fewest jumps."""
        return min(self.space(workload, target), key=lambda c: (estimate(workload, c, target), -c.int("c")))

    def estimate(self, workload: Workload, config: Config, target: Target) -> float:
        return estimate(workload, config, target)

    def pack(
        self, weight: np.ndarray, bias: np.ndarray | None, workload: Workload, config: Config, target: Target
    ) -> Packed:
        shape, stream = _pack_that_fits(weight, Shape.of(config), target)
        starts = bias_array(bias, workload.m)
        place_bias = np.where(stream.rows >= 0, starts[stream.rows], 0).astype(np.float32)
        meta = {
            "chunk": shape.chunk,
            "chunks": stream.chunks // shape.parts,
            "block_bytes": stream.block_bytes,
            "row_tiles": stream.rows.size // shape.tile_rows,
        }
        return Packed((stream.blocks, stream.rows, place_bias), meta)

    def kernel(self, workload: Workload, config: Config, packed: Packed, target: Target, symbol: str) -> Any:
        g, meta, shape = flat_geometry(workload), packed.meta, Shape.of(config)
        shape = replace(shape, chunk=meta["chunk"])
        stages = shape.stages(meta["block_bytes"], meta["chunks"], target)
        before, after = g.border
        text = f'#define SP_DISPATCH {dispatch_loop(shape.rows, shape.c)}\n#include "spmm_dispatch.cuh"\n'
        defines = (
            *(("SP_C", shape.c), ("SP_R", shape.rows), ("SP_WARPS", shape.warps), ("SP_CHUNK", shape.chunk)),
            *(
                ("SP_COPIERS", shape.copiers),
                ("SP_STAGES", stages),
                ("SP_CLUSTER", shape.parts),
                ("SP_IMAGE", int(workload.conv is not None)),
            ),
            *epilogue_defines(workload.epilogue),
        )
        scalars = (
            *(meta["chunks"], meta["block_bytes"], workload.k, g.x0 + int(g.taps[0][0]), g.x_batch, g.x_row),
            *(g.positions, g.valid, g.pitch, g.width, g.y0, g.y_batch, g.y_row, before, after),
            *(g.r0, g.r_batch, g.r_row),
        )
        return Launch(
            f"spmm_dispatch_{shape.rows}_{shape.c}.cu", "spmm_dispatch", defines,
            (-(-g.positions // shape.nt) * shape.parts, meta["row_tiles"], g.batch),
            (shape.warps + shape.copiers) * LANES, shape.shared(meta["block_bytes"], stages), shape.parts, scalars,
            text=text, overlaps=True,
        )  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """A config's knobs as far as they fit together."""

    rows: int
    c: int
    warps: int
    chunk: int
    parts: int
    copiers: int

    @staticmethod
    def of(config: Config) -> Shape:
        """Rows are halved until a thread's sums fit into its registers."""
        rows, c, warps = (config.int(name) for name in ("rows", "c", "warps"))
        while (rows + 1) * c > _FLOATS[warps]:
            rows //= 2
        copiers = _COPIERS if config.str("copy") == "async" else 1
        return Shape(rows, c, warps, config.int("chunk"), config.int("parts"), copiers)

    @property
    def nt(self) -> int:
        return LANES * self.c

    @property
    def tile_rows(self) -> int:
        return self.rows * self.warps

    def shared(self, block_bytes: int, stages: int) -> int:
        """Dynamic shared memory of a block: stages, later a partial tile."""
        partial = self.tile_rows * row_bytes(self.c) if self.parts > 1 else 0
        return _BARRIERS + max(stages * (self.chunk * row_bytes(self.c) + block_bytes), partial)

    def stages(self, block_bytes: int, chunks: int, target: Target) -> int:
        """As many as fit, at most four and one for each chunk; 0 when not even one fits."""
        fit = (target.shared - _BARRIERS) // (self.chunk * row_bytes(self.c) + block_bytes)
        return min(fit, _MOST_STAGES, chunks)


def _pack_that_fits(weight: np.ndarray, shape: Shape, target: Target) -> tuple[Shape, DispatchStream]:
    """The stream, and the shape whose chunk is halved until at least two stages (or all chunks) fit."""
    while True:
        stream = pack_dispatch_stream(weight, shape.chunk, row_bytes(shape.c), shape.warps, shape.rows, shape.parts)
        chunks = stream.chunks // shape.parts
        if shape.chunk == 1 or shape.stages(stream.block_bytes, chunks, target) >= min(2, chunks):
            return shape, stream
        shape = replace(shape, chunk=shape.chunk // 2)


def estimate(workload: Workload, config: Config, target: Target) -> float:
    """Clocks of a launch: jumps and copies, which overlap partly, and what comes once."""
    shape, g, density = Shape.of(config), flat_geometry(workload), workload.pattern.density
    depth, row = workload.k / shape.parts, row_bytes(shape.c)
    blocks = -(-workload.m // shape.tile_rows) * -(-g.positions // shape.nt) * g.batch * shape.parts
    waves = -(-blocks // max(1, int(target.sms * CLUSTERED.get(shape.parts, 1.0))))
    entries = shape.rows * depth * density * _UNEVEN  # of a warp
    copies = depth * _ROW_COPY if shape.copiers == 1 else (depth * row + 8 * entries * shape.warps) / _ASYNC_BYTES
    taken = _ASYNC_SHARE * shape.warps if shape.copiers > 1 else 0.0
    jumps = entries * (_JUMP + _SHARE * shape.warps * shape.c + taken)
    once = _START + shape.tile_rows * row / _OUTPUT_BYTES
    if shape.parts > 1:
        once += _CLUSTER * math.log2(2 * shape.parts)
    return waves * (float((jumps**_NORM + copies**_NORM) ** (1 / _NORM)) + once)
