"""SpMM and sparse convolution with the non-zero pattern compiled into straight-line code.

    for block of tiles:                                   # its activations stay in L2
        for K block, row groups (a piece of code):        # fetched once per block, stays in L1I / L2
            for tile of 16 positions:                     # activations of the K block stay in L1
                28 accumulators; per non-zero one FMA with its weight as a memory broadcast

Requires: AVX-512; X and Y in Tiled, Planes or PlaneTiles layouts that `supports_taps`; any epilogue (bias, residual,
ReLU and clip run inside the code, other activations as a sweep over the finished rows).
See formats/pattern_asm.py for the code and its source; the pieces are this project's answer to cold instruction fetch.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from sparsetvm.schedules.base import Packed, Template
from sparsetvm.schedules.x86.arguments import initial_sums, layer_args
from sparsetvm.schedules.x86.epilogue import activate_in_place, zero_borders
from sparsetvm.schedules.x86.geometry import TapGeometry, supports_taps, tap_geometry

from sparsetvm.core.config import Config
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload
from sparsetvm.formats.pattern_asm import CodePlan, Epilog, Piece, emit_pieces, llvm_functions
from sparsetvm.space.knobs import Choice, Ordered
from sparsetvm.space.space import Space

_IN_CODE = ("none", "relu", "clip")
# Above this the code of a layer costs more build time and cache than it can win back.
_MAX_NNZ = 1_500_000
_BYTES_PER_NNZ = 14  # of code and weights, about
# Fields of the table that the host reads pieces from.
_FIELDS = 6
_ROW, _FINISHED_ROWS, _WEIGHT, _WEIGHT_LINES, _CODE_SHARE, _WEIGHT_SHARE = range(_FIELDS)


class PatternCode(Template):
    """Template x86.pattern_code."""

    name = "x86.pattern_code"
    version = 3

    def matches(self, workload: Workload, target: Target) -> bool:
        return (
            target.isa == "avx512"
            and workload.pattern.kind != "dense"
            and 0 < workload.nnz <= _MAX_NNZ
            and supports_taps(workload)
        )

    def space(self, workload: Workload, target: Target) -> Space:
        blocks = tuple(b for b in (96, 192, 288, 384, 512, 768, 1536) if b < workload.k) or (workload.k,)
        if workload.k <= 1536:
            blocks = tuple(sorted({*blocks, workload.k}))
        return Space(
            self.name,
            (
                Ordered("rows", (12, 16, 20, 24, 28, 30)),
                Ordered("k_block", blocks),
                Ordered("groups", (1, 2, 4, 8, 16, 64)),
                Ordered("tiles", _tile_blocks(workload)),
                Choice("order", ("k", "rows")),
            ),
        )

    def default(self, workload: Workload, target: Target) -> Config:
        knobs = self.space(workload, target).knobs
        k_block = min(knobs[1].values, key=lambda v: abs(int(v) - 384))
        return Config.of(
            self.name, rows=28, k_block=k_block, groups=4, tiles=_default_tiles(workload, target), order="k"
        )

    def pack(
        self, weight: np.ndarray, bias: np.ndarray | None, workload: Workload, config: Config, target: Target
    ) -> Packed:
        geometry, epilogue = tap_geometry(workload), workload.epilogue
        by_rows = _split_by_rows(geometry, target.threads)
        share = geometry.total_tiles if by_rows else -(-geometry.total_tiles // target.threads)
        runs = min(config.int("tiles"), share)
        rows_first = config.str("order") == "rows"
        plan = CodePlan(config.int("rows"), config.int("k_block"), config.int("groups"), rows_first, runs)
        in_code = epilogue.activation if epilogue.activation in _IN_CODE else "none"
        epilog = Epilog(epilogue.residual, geometry.residual_stride, in_code, geometry.mask is not None)
        pieces, stream = emit_pieces(
            weight, geometry.taps, geometry.rows_per_group, geometry.row_stride, geometry.lanes, plan, epilog
        )
        bounds = np.array([epilogue.low, epilogue.high], np.float32)
        start = initial_sums(bias, workload.m)
        # The kernel declares every array, also when no row has a weight.
        weights = stream if stream.size else np.zeros(1, np.float32)
        order, first = _schedule(pieces, target.threads, by_rows)
        table = _piece_table(pieces, weights.size)
        arrays = (weights, np.concatenate([start, bounds]), geometry.mask_bits(), table, order, first)
        return Packed(arrays, {"pieces": pieces, "workers": first.size - 1})

    def kernel(self, workload: Workload, config: Config, packed: Packed, target: Target, symbol: str) -> Any:
        return _Host(workload, config.int("tiles"), packed, target.threads, symbol).build()


class _Host:
    """The TIR around the pieces: threads, loops over pieces and tiles, zero borders, activations outside the code."""

    def __init__(self, workload: Workload, tiles: int, packed: Packed, threads: int, symbol: str) -> None:
        self.workload, self.tile_block, self.packed, self.symbol = workload, tiles, packed, symbol
        self.geometry: TapGeometry = tap_geometry(workload)
        self.threads = threads
        self.by_rows = _split_by_rows(self.geometry, threads)

    def build(self) -> Any:
        from sparsetvm.schedules.x86 import tir
        from tvm import tirx
        from tvm.tirx.script import builder as tb

        functions = llvm_functions(self.symbol, self.packed.meta["pieces"])
        workers = self.packed.meta["workers"]
        with tir.prim_func(self.symbol) as ib:
            self.x, self.r, arrays, self.y = layer_args(self.workload, self.packed)
            self.w, self.bias, self.mask, self.table, self.order, self.first = arrays
            with tb.attr(tirx.const(0, "int32"), "pragma_import_llvm", functions):
                zero_borders(self.y, self.geometry, self.workload.m, self.threads)
                with tir.outer(workers, self.threads) as worker:
                    self._work(worker, workers)
        return ib.get()

    def _work(self, worker: Any, workers: int) -> None:
        """All pieces of one worker, each over a block of tiles; the next piece comes in while one runs."""
        from tvm import tirx
        from tvm.tirx.script import builder as tb

        total = self.geometry.total_tiles
        lo, hi = (0, total) if self.by_rows else (worker * total // workers, (worker + 1) * total // workers)
        begin, end = self.first[worker], self.first[worker + 1]
        self._touch(self.order[begin])
        with tb.serial(tirx.ceildiv(hi - lo, self.tile_block)) as block:
            first = tb.Bind(lo + block * self.tile_block)
            with tb.serial(end - begin) as at:
                piece = tb.Bind(self.order[begin + at])
                # After the last piece comes the first one again, for the next block.
                following = tb.Bind(self.order[tirx.Select(begin + at + 1 < end, begin + at + 1, begin)])
                code_share, weight_share = (tb.Bind(self._field(piece, f)) for f in (_CODE_SHARE, _WEIGHT_SHARE))
                with tb.serial(tirx.min(hi - first, self.tile_block)) as step:
                    self._run(piece, following, step * code_share, step * weight_share, first + step)

    def _field(self, piece: Any, field: int) -> Any:
        return self.table[piece * _FIELDS + field]

    def _touch(self, piece: Any) -> None:
        from tvm import tirx
        from tvm.tirx.script import builder as tb

        weights = tirx.address_of(self.w[self._field(piece, _WEIGHT)])
        lines = self._field(piece, _WEIGHT_LINES)
        tb.evaluate(tirx.call_extern("int32", f"{self.symbol}_touch", piece, weights, lines))

    def _run(self, piece: Any, following: Any, line: Any, weight_line: Any, at: Any) -> None:
        from tvm import tirx
        from tvm.tirx.script import builder as tb

        g = self.geometry
        image, tile = (at // g.tiles, at % g.tiles) if g.batch > 1 else (0, at)
        yo = g.y0 + image * g.y_batch + tile * g.y_tile
        ro = g.r0 + image * g.r_batch + tile * g.r_tile
        xo = g.x0 + image * g.x_batch + tile * g.x_tile
        ahead = tirx.min(self._field(following, _WEIGHT) + weight_line * 16, self.packed.arrays[0].size - 1)
        pointers = (
            self.w[ahead],
            self.x[xo],
            self.y[yo],
            self.w[self._field(piece, _WEIGHT)],
            self.bias[0],
            self.mask[tile if g.mask is not None else 0],
            self.r[ro] if self.r is not None else self.y[yo],
        )
        name = f"{self.symbol}_run"
        addresses = (tirx.address_of(pointer) for pointer in pointers)
        tb.evaluate(tirx.call_extern("int32", name, piece, following, line, *addresses))
        if self.workload.epilogue.activation not in _IN_CODE:
            lane_mask = self.mask[tile] if g.mask is not None else None
            with tb.serial(self._field(piece, _FINISHED_ROWS)) as row:
                offset = yo + (self._field(piece, _ROW) + row) * g.row_stride
                activate_in_place(self.y, offset, self.workload.epilogue, g.lanes, lane_mask)


def _tile_blocks(workload: Workload) -> tuple[int, ...]:
    total = tap_geometry(workload).total_tiles
    return (*(t for t in (4, 8, 16, 32, 64, 128) if t < total), total)


def _default_tiles(workload: Workload, target: Target) -> int:
    """Tiles whose activations take a quarter of L2; all of them where code and weights would come from beyond L2."""
    blocks = _tile_blocks(workload)
    if _BYTES_PER_NNZ * workload.nnz > target.l2 // 2:
        return blocks[-1]
    area = math.prod(workload.conv.kernel) if workload.conv else 1
    tile_bytes = 4 * tap_geometry(workload).lanes * workload.k // area
    return max((t for t in blocks if t * tile_bytes <= target.l2 // 4), default=blocks[0])


def _split_by_rows(geometry: TapGeometry, threads: int) -> bool:
    """Few tiles: threads share the rows instead."""
    return threads > 1 and geometry.total_tiles < 2 * threads


def _piece_table(pieces: list[Piece], weights: int) -> np.ndarray:
    """(pieces * _FIELDS,) int32: what the host must know of each piece."""
    rows = [
        (
            piece.row,
            piece.row_end - piece.row if piece.last else 0,
            min(piece.weight, weights - 1),
            -(-4 * piece.weights // 64),
            piece.code_share,
            piece.weight_share,
        )
        for piece in pieces
    ]
    return np.array(rows, np.int32).ravel()


def _schedule(pieces: list[Piece], workers: int, by_rows: bool) -> tuple[np.ndarray, np.ndarray]:
    """(order, first): worker i runs the pieces order[first[i] : first[i + 1]]; by tiles every worker runs all."""
    shares = _share_rows(pieces, workers) if by_rows else [list(range(len(pieces)))]
    starts = np.cumsum([0, *map(len, shares)]) if by_rows else np.array([0, len(pieces)])
    order = np.concatenate([np.array(share) for share in shares])
    if not by_rows and workers > 1:
        order = np.tile(order, workers)
        starts = np.arange(workers + 1) * len(pieces)
    return order.astype(np.int32), starts.astype(np.int32)


def _share_rows(pieces: list[Piece], threads: int) -> list[list[int]]:
    """Deal whole row ranges to threads, the one with the most code first; K blocks of a range keep their order."""
    ranges: dict[int, list[int]] = {}
    for i, piece in enumerate(pieces):
        ranges.setdefault(piece.row, []).append(i)
    cost = {row: sum(pieces[i].code_bytes for i in chosen) for row, chosen in ranges.items()}
    shares: list[list[int]] = [[] for _ in range(min(threads, len(ranges)))]
    load = [0] * len(shares)
    for row in sorted(ranges, key=lambda r: -cost[r]):
        lightest = load.index(min(load))
        shares[lightest].extend(ranges[row])
        load[lightest] += cost[row]
    return shares
