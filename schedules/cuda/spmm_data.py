"""SpMM and sparse convolution with the pattern in data, X tiles and entries in shared memory (spmm_data.cu).

    for (row tile, run of nt positions):                    # one block; a cluster of `parts` blocks shares K
        for chunk of K: X of the chunk and its entries -> shared memory
            for row of the warp: for entry: c FMAs a lane

Requires: flat positions (products of more than a few tokens, images as planes). Bound by reads of shared memory: one
128-byte wavefront for 32 products, a quarter of the fp32 peak.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from sparsetvm.schedules.base import Packed, Template
from sparsetvm.schedules.cuda.epilogue import bias_array, epilogue_defines
from sparsetvm.schedules.cuda.geometry import FlatGeometry, flat_geometry, supports_flat
from sparsetvm.schedules.cuda.launch import Launch
from sparsetvm.schedules.cuda.spmm_data_model import best_config
from sparsetvm.schedules.cuda.spmm_data_model import estimate as clocks
from sparsetvm.schedules.cuda.windows import Windows, aligned_rows, windows

from sparsetvm.core.config import Config
from sparsetvm.core.layout import Planes, Tiled
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload
from sparsetvm.formats.tile_stream import TileShape, TileStream, pack_tile_stream
from sparsetvm.space.knobs import Ordered
from sparsetvm.space.space import Space

_INT = 1 << 31
_GRID = 65535  # blocks along y and z
_CHUNKS = (64, 128, 256, 512, 1024)
_WINDOW_CHUNKS = (8, 16, 32, 64, 128)  # channels
_LARGEST = 1024


class SpmmData(Template):
    """Template cuda.spmm_data."""

    name = "cuda.spmm_data"
    version = 1

    def matches(self, workload: Workload, target: Target) -> bool:
        if target.kind != "cuda" or workload.pattern.kind == "dense" or workload.nnz == 0:
            return False
        layouts = (workload.layout_in, workload.layout_out, workload.residual_layout)
        if not all(isinstance(layout, Planes | Tiled) for layout in layouts) or not supports_flat(workload):
            return False
        sizes = [math.prod(layout.physical_shape(())) for layout in layouts]
        geometry = flat_geometry(workload)
        return max(sizes) < _INT and geometry.batch <= _GRID and _regular(geometry)

    def space(self, workload: Workload, target: Target) -> Space:
        geometry = flat_geometry(workload)
        window = not aligned_rows(geometry)
        channels = workload.k if workload.conv is None else workload.k // math.prod(workload.conv.kernel)
        depth = channels if window else workload.k
        # Of chunks the whole of K where a block can hold it, and the larger ones.
        chunks = tuple(c for c in (_WINDOW_CHUNKS if window else _CHUNKS) if c < depth)[-4:]
        chunks = (*chunks, depth) if depth <= _LARGEST else chunks
        wide = tuple(nt for nt in (32, 64, 128) if nt == 32 or nt < 2 * geometry.positions)
        return Space(
            self.name,
            (
                # Positions of a block; for windows they are 32 times the lane's.
                Ordered("nt", wide),
                Ordered("c", (4,) if window else (2, 4)),
                Ordered("rows", (1, 2, 4, 8)),
                Ordered("warps", (8, 16)),
                Ordered("chunk", chunks),
                # Measured on an H200: more stages or longer batches win nothing anywhere.
                Ordered("stages", (2,)),
                Ordered("parts", (1, 2, 4, 8)),
                Ordered("batch", (2,)),
            ),
        )

    def version_of(self, config: Config) -> int:
        return 2 if config.int("parts") > 1 else 1

    def default(self, workload: Workload, target: Target) -> Config:
        return best_config(workload, self.space(workload, target), target)

    def estimate(self, workload: Workload, config: Config, target: Target) -> float:
        g = flat_geometry(workload)
        view = windows(workload, g, config.int("nt"))
        return clocks(workload, config, view, target, g.positions, g.batch)

    def pack(
        self, weight: np.ndarray, bias: np.ndarray | None, workload: Workload, config: Config, target: Target
    ) -> Packed:
        geometry = flat_geometry(workload)
        knobs = Shape.of(workload, geometry, config)
        stream, chunk_rows = _pack_that_fits(weight, geometry, knobs, target)
        starts = bias_array(bias, workload.m)
        place_bias = np.where(stream.rows >= 0, starts[stream.rows], 0).astype(np.float32)
        arrays = (stream.blocks, stream.rows, place_bias, knobs.windows.starts.ravel())
        meta = {
            "chunks": stream.chunks // knobs.parts,
            "chunk_rows": chunk_rows,
            "block_bytes": stream.block_bytes,
            "group_tiles": stream.group_tiles,
            "row_tiles": stream.rows.size // knobs.tile.tile_rows,
            "entries": stream.entries,
        }
        return Packed(arrays, meta)

    def kernel(self, workload: Workload, config: Config, packed: Packed, target: Target, symbol: str) -> Launch:
        g = flat_geometry(workload)
        knobs = Shape.of(workload, g, config)
        view, meta = knobs.windows, packed.meta
        single = meta["chunks"] == 1
        start, reach = (int(v) for v in view.starts[0])
        before, after = g.border
        defines = (
            ("SP_NT", knobs.nt),
            ("SP_C", knobs.c),
            ("SP_R", knobs.tile.rows),
            ("SP_WARPS", knobs.tile.warps),
            ("SP_U", knobs.tile.batch),
            ("SP_STAGES", 2 if single else knobs.stages),
            ("SP_CLUSTER", knobs.parts),
            ("SP_WINDOW", int(not view.aligned)),
            ("SP_SINGLE", int(single)),
            ("SP_PHASES", view.phases),
            ("SP_GROUPED", int(len(g.taps) > 1)),
            ("SP_IMAGE", int(workload.conv is not None)),
            *epilogue_defines(workload.epilogue),
        )
        scalars = (
            *(meta["group_tiles"], meta["chunks"], meta["chunk_rows"], meta["block_bytes"], view.rows, view.length),
            *(reach, view.x0 + (start if view.phases == 1 else 0), g.x_batch, view.x_group, view.x_row),
            *(g.positions, g.valid, g.pitch, g.width, g.y0, g.y_batch, g.y_row, before, after),
            *(g.r0, g.r_batch, g.r_row),
        )
        return Launch(
            "spmm_data.cu", "spmm_data", defines,
            (-(-g.positions // knobs.nt) * knobs.parts, meta["row_tiles"], g.batch), knobs.tile.warps * 32,
            shared_bytes(knobs, meta["chunk_rows"], meta["block_bytes"], meta["chunks"]), knobs.parts, scalars,
            overlaps=True,
        )  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """A config's knobs, made sense of for a workload."""

    nt: int
    c: int
    chunk: int
    stages: int
    parts: int
    tile: TileShape
    windows: Windows

    @staticmethod
    def of(workload: Workload, geometry: FlatGeometry, config: Config) -> Shape:
        nt, c = config.int("nt"), config.int("c")
        view = windows(workload, geometry, nt)
        if not view.aligned:
            c = nt // 32
        # A lane group computes nt positions; where c is too small for one group, lanes take more.
        c = max(c, nt // 32)
        tile = TileShape(config.int("warps"), config.int("rows"), config.int("batch"), 32 * c // nt)
        return Shape(nt, c, config.int("chunk"), config.int("stages"), config.int("parts"), tile, view)


def shared_bytes(shape: Shape, chunk_rows: int, block_bytes: int, chunks: int) -> int:
    """Dynamic shared memory of a block."""
    stages = min(shape.stages, chunks) * (chunk_rows * shape.windows.length * 4 + block_bytes)
    # Sums come from other blocks, which may be done while this one still reads its stages.
    sums = shape.parts * -(-shape.tile.tile_rows // shape.parts) * shape.nt * 4 + 16 if shape.parts > 1 else 0
    return shape.tile.tile_rows * 8 + stages + sums


def _pack_that_fits(weight: np.ndarray, geometry: FlatGeometry, shape: Shape, target: Target) -> tuple[TileStream, int]:
    """The stream and the windows of a chunk: the config's chunk, halved until a block fits into shared memory."""
    view, channels = shape.windows, shape.chunk
    channels = min(channels, -(-(view.rows // view.phases) // shape.parts))
    while True:
        chunk_rows = channels * view.phases
        stream = pack_tile_stream(
            weight, geometry.rows_per_group, channels * view.columns, view.offsets(chunk_rows), shape.tile, shape.parts
        )
        chunks = stream.chunks // shape.parts
        if channels == 1 or shared_bytes(shape, chunk_rows, stream.block_bytes, chunks) <= target.shared:
            return stream, chunk_rows
        channels = -(-channels // 2)


def _regular(geometry: FlatGeometry) -> bool:
    """The borders are what lies around the positions, and groups are one step apart."""
    taps = np.array([t[0] for t in geometry.taps])
    even = taps.size < 3 or bool((np.diff(taps) == taps[1] - taps[0]).all())
    if not geometry.borders:
        return even
    (first, stop), (start, _) = geometry.borders
    return even and first == 0 and stop == geometry.y0 and start == geometry.y0 + geometry.positions
