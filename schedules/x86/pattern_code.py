"""SpMM and sparse convolution with the non-zero pattern compiled into straight-line code.

    for block of tiles:                                   # its activations stay in L2
        for K block, row groups (a piece of code):        # fetched once per block, stays in L1I / L2
            for tile of 16 positions:                     # activations of the K block stay in L1
                30 accumulators; per non-zero one FMA with its weight as a memory broadcast

With AVX2's 16 registers: 13 rows of one tile of 8 positions, or up to 6 rows of two tiles.

Requires: X and Y in Tiled, Planes or PlaneTiles layouts that `supports_taps`; any epilogue (bias, residual, ReLU and
clip run inside the code, other activations as a sweep over the finished rows). See formats/pattern_asm.py and
pattern_asm_avx2.py for the code and its source; the pieces are this project's answer to cold instruction fetch.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from sparsetvm.schedules.base import Packed, Template
from sparsetvm.schedules.x86.arguments import initial_sums, layer_args
from sparsetvm.schedules.x86.epilogue import activate_in_place, zero_borders
from sparsetvm.schedules.x86.geometry import TapGeometry, strip_rows, supports_taps, tap_geometry
from sparsetvm.schedules.x86.shares import BYTES_PER_NNZ, Shares, default_row_parts, row_parts, shares_of

from sparsetvm.analysis.cpu_core import core_of
from sparsetvm.core.config import Config
from sparsetvm.core.layout import BatchTiles
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload
from sparsetvm.formats import pattern_asm, pattern_asm_avx2
from sparsetvm.formats.piece_functions import llvm_functions
from sparsetvm.formats.pieces import CodePlan, Epilog, Piece
from sparsetvm.space.knobs import Choice, Ordered
from sparsetvm.space.space import Space

_IN_CODE = ("none", "relu", "clip")
# Above this the code of a layer costs more build time and cache than it can win back.
_MAX_NNZ = 1_500_000
_FAR_TILES = 32
_TILES_FROM_AFAR, _FEW_TILES = 8, 16  # of a block when the code is far away; all when there are no more than that
# With 16 registers: from here on code of two tiles at once, longer but fetched half as often, is the better one.
_MANY_TILES = 64
_SHORT_ROWS = 16  # non-zeros
# Rows of blocks from which on pattern_data, in strips of them, is the faster one; tiles that a strip takes at once.
_STRIPS_IN_DATA, _STRIP_TILES = 4, 4
# Defaults of layers that run warm, from tuning 25 products on a Zen 5: non-zeros of a row under which all row groups
# are one piece; density up to which rows that share columns are grouped; share of L2 from which K blocks go outermost.
_SHORT, _SHARED_BELOW, _MOST_OF_L2 = 32, 0.15, 0.7
# Defaults where code streams (Zen 4), measured. Columns of X whose activations leave room in an L1 of 32 KiB for the
# weights that pass through it; where non-zeros are so few that passing sums through Y costs more, all that L1 holds.
_STREAMED_BLOCK, _LONG_BLOCK, _FEW_IN_A_BLOCK = 384, 512, 0.03
# Density from which FMAs and not loads are the bound, so that sharing columns gains nothing; size of X and Y, in L2s,
# from which sums of scattered rows cost up to a fifth of the time.
_STREAMED_SHARED_BELOW, _STREAMED_FAR = 0.08, 7
# Columns of one pixel that are enough for a K block of their own.
_PIXEL = 192
# Code and weights that stream at full rate; of more, pieces that prefetch each other take a tenth less time.
_MOST_STREAMED = 12 << 20
# Fields of the table that the host reads pieces from.
_FIELDS = 6
_ROW, _FINISHED_ROWS, _WEIGHT, _WEIGHT_LINES, _CODE_SHARE, _WEIGHT_SHARE = range(_FIELDS)
# More of them where pieces are skipped: first and last + 1 row of tiles, and tile of a row, that a piece is run for.
_RANGE = range(_FIELDS, _FIELDS + 4)


class PatternCode(Template):
    """Template x86.pattern_code."""

    name = "x86.pattern_code"
    version = 3

    def matches(self, workload: Workload, target: Target) -> bool:
        return workload.pattern.kind != "dense" and 0 < workload.nnz <= _MAX_NNZ and supports_taps(workload)

    def preferred(self, workload: Workload, target: Target) -> bool:
        # pattern_data shares blocks of tiles among threads, this template rows as well.
        enough = tap_geometry(workload).total_tiles >= _STRIP_TILES * target.threads
        if strip_rows(workload)[-1] >= _STRIPS_IN_DATA and (enough or target.threads == 1):
            return False
        # With 16 registers few rows share a load, and both ways are bound by loads: code wins where rows are short.
        return target.isa == "avx512" or workload.nnz < _SHORT_ROWS * workload.m

    def space(self, workload: Workload, target: Target) -> Space:
        blocks = tuple(b for b in (96, 192, 288, 384, 512, 576, 768, 1152, 1536) if b < workload.k) or (workload.k,)
        if workload.k <= 1536:
            blocks = tuple(sorted({*blocks, workload.k}))
        blocks = tuple(sorted({*blocks, *_pixel_blocks(workload)}))
        # Several threads have a knob more; the records of one keep their space.
        shared = (Ordered("row_parts", row_parts(target.threads)),) if target.threads > 1 else ()
        return Space(
            self.name,
            (
                Ordered("rows", (12, 16, 20, 24, 28, 30) if target.isa == "avx512" else (4, 5, 6, 8, 10, 12, 13)),
                Ordered("k_block", blocks),
                Ordered("groups", (1, 2, 4, 8, 16, 64)),
                Ordered("tiles", _tile_blocks(workload)),
                Choice("order", ("k", "rows")),
                Choice("prefetch", ("next", "none", "sums") if _streams_code(target) else ("next", "none")),
                Choice("groups_of", ("alike", "neighbours")),
                *shared,
            ),
        )

    def default(self, workload: Workload, target: Target) -> Config:
        config = self._default_of_one(workload, target)
        return config if target.threads == 1 else config.replace(row_parts=default_row_parts(workload, target))

    def _default_of_one(self, workload: Workload, target: Target) -> Config:
        """The default but for what threads share."""
        # A pixel of images in lanes is a tile: there are so many that even cold code is mostly warm.
        if _streams_code(target) and (not workload.cold or isinstance(workload.layout_in, BatchTiles)):
            return self._streamed_default(workload, target)
        knobs = self.space(workload, target).knobs
        # One tile meets every instruction once: there small K blocks, whose activations are soon in L1, do better.
        block = 512 if tap_geometry(workload).total_tiles > 1 else 288
        rows = 30
        if target.isa != "avx512":
            rows, block = (6, 384) if tap_geometry(workload).total_tiles >= _MANY_TILES else (13, block)
        # Cold code that would stream well when warm: larger pieces. Short K stays whole, to be written in place.
        larger = _streams_code(target) and tap_geometry(workload).total_tiles > 1
        if larger and workload.k > block:
            block = _STREAMED_BLOCK
        block = max((b for b in _pixel_blocks(workload) if b <= block), default=block)
        tiles = _default_tiles(workload, target)
        short = workload.nnz < _SHORT * workload.m
        warm = target.isa == "avx512" and not workload.cold and tap_geometry(workload).total_tiles > 1
        # In a network, short rows leave a kernel bound by memory, which likes neighbours better than shared columns.
        alike = workload.pattern.density <= _SHARED_BELOW if warm else not short
        return Config.of(
            self.name,
            rows=rows,
            k_block=min(knobs[1].values, key=lambda v: abs(int(v) - block)),
            groups=8 if rows == 6 or larger else 64 if warm and short else 2,
            tiles=tiles,
            order="k" if warm and tiles * _tile_bytes(workload) > _MOST_OF_L2 * target.l2 else "rows",
            prefetch="next" if workload.cold or BYTES_PER_NNZ * workload.nnz > target.l2 // (1 + warm) else "none",
            groups_of="alike" if alike else "neighbours",
        )

    def _streamed_default(self, workload: Workload, target: Target) -> Config:
        """Where code streams from L2 and L3 at full rate: a tile goes through all rows while its K block is in L1."""
        blocks = self.space(workload, target).knobs[1].values
        block = _STREAMED_BLOCK if workload.pattern.density > _FEW_IN_A_BLOCK else _LONG_BLOCK
        block = max((b for b in _pixel_blocks(workload) if b <= block), default=block)
        far = workload.activation_bytes > _STREAMED_FAR * target.l2
        alike = workload.pattern.density <= _STREAMED_SHARED_BELOW and not far
        streams = BYTES_PER_NNZ * workload.nnz <= _MOST_STREAMED
        return Config.of(
            self.name,
            rows=30,
            k_block=min(blocks, key=lambda v: abs(int(v) - block)),
            groups=64 if streams else 8,
            tiles=_default_tiles(workload, target),
            order="rows",
            prefetch="sums" if streams else "next",
            groups_of="alike" if alike else "neighbours",
        )

    def writes_in_place(self, workload: Workload, config: Config) -> bool:
        # Of several K blocks all but the last store sums in Y, and the last one adds the residual.
        return workload.epilogue.residual and config.int("k_block") >= workload.k

    def pack(
        self, weight: np.ndarray, bias: np.ndarray | None, workload: Workload, config: Config, target: Target
    ) -> Packed:
        geometry, epilogue = tap_geometry(workload), workload.epilogue
        weight = geometry.arranged(weight)
        taps, inside = geometry.taps, _skipped(geometry, config, target)
        if inside is not None:
            # Sums end with columns that are never skipped.
            order = np.argsort((inside == _always(geometry)).all(1), kind="stable")
            weight, taps, inside = weight[:, order], tuple(tap[order] for tap in taps), inside[order]
        shares = _shares(geometry, config, target)
        share = -(-geometry.total_tiles // shares.tiles)
        at_once = _tiles_at_once(config, target)
        prefetch = config.str("prefetch")
        runs = -(-min(config.int("tiles"), share) // at_once) if prefetch == "next" else 0
        rows_first = config.str("order") == "rows"
        clustered = config.str("groups_of") == "alike"
        rows, groups = config.int("rows"), config.int("groups")
        if shares.rows > 1:
            rows, groups = _even_shares(workload.m, rows, groups, shares.rows)
        # Tiles of Planes overlap in memory: there is nothing to bring in.
        outside = workload.activation_bytes > target.l2 and geometry.x_tile > geometry.lanes
        x_ahead = geometry.x_tile if prefetch == "sums" and outside else 0
        plan = CodePlan(rows, config.int("k_block"), groups, rows_first, clustered, runs, prefetch == "sums", x_ahead)
        in_code = epilogue.activation if epilogue.activation in _IN_CODE else "none"
        # Many tiles are much memory, from which a line takes longer than one row group lasts.
        far = geometry.total_tiles >= _FAR_TILES
        epilog = Epilog(
            epilogue.residual,
            geometry.residual_stride,
            in_code,
            geometry.mask is not None,
            geometry.y_tile if far else 0,
            geometry.r_tile if far else 0,
        )
        place = (taps, geometry.rows_per_group, geometry.row_stride, geometry.lanes)
        if target.isa == "avx512":
            pieces, stream = pattern_asm.emit_pieces(weight, *place, plan, epilog)
        else:
            pieces, stream = pattern_asm_avx2.emit_pieces(weight, *place, at_once, plan, epilog)
        bounds = np.array([epilogue.low, epilogue.high], np.float32)
        start = initial_sums(bias, workload.m)
        # The kernel declares every array, also when no row has a weight.
        weights = stream if stream.size else np.zeros(1, np.float32)
        order, first = _schedule(pieces, shares.rows)
        ranges = _ranges(pieces, inside, config.int("k_block"))
        table = _piece_table(pieces, weights.size, ranges)
        row_order = np.concatenate([piece.rows for piece in pieces if piece.last]).astype(np.int32)
        bits = geometry.mask_bits()
        # AVX2 has no mask registers: a mask is a vector of int32, 0 or -1.
        lanes = bits if target.isa == "avx512" else pattern_asm_avx2.lane_masks(bits, geometry.lanes)
        arrays = (weights, np.concatenate([start, bounds]), bits, lanes, table, order, first, row_order)
        return Packed(arrays, {"pieces": pieces, "shares": Shares(first.size - 1, shares.tiles), "ranges": ranges})

    def kernel(self, workload: Workload, config: Config, packed: Packed, target: Target, symbol: str) -> Any:
        return _Host(workload, config, packed, target, symbol).build()


class _Host:
    """The TIR around the pieces: threads, loops over pieces and tiles, zero borders, activations outside the code."""

    def __init__(self, workload: Workload, config: Config, packed: Packed, target: Target, symbol: str) -> None:
        self.workload, self.tile_block, self.packed, self.symbol = workload, config.int("tiles"), packed, symbol
        self.geometry: TapGeometry = tap_geometry(workload)
        self.threads = target.threads
        self.shares: Shares = packed.meta["shares"]
        self.second_tile = target.isa != "avx512"
        self.at_once = _tiles_at_once(config, target)
        self.touches_first = config.str("prefetch") != "sums"
        self.ranges: np.ndarray | None = packed.meta["ranges"]

    def build(self) -> Any:
        from sparsetvm.schedules.x86 import tir
        from tvm import tirx
        from tvm.tirx.script import builder as tb

        functions = llvm_functions(self.symbol, self.packed.meta["pieces"], self.second_tile)
        with tir.prim_func(self.symbol) as ib:
            self.x, self.r, arrays, self.y = layer_args(self.workload, self.packed)
            self.w, self.bias, self.mask, self.lane_masks, self.table, self.order, self.first, self.rows = arrays
            with tb.attr(tirx.const(0, "int32"), "pragma_import_llvm", functions):
                zero_borders(self.y, self.geometry.zeros, self.geometry.lanes, self.threads)
                with tir.outer(self.shares.workers, self.threads) as worker:
                    # Neighbouring threads have the same tiles, as they do in kernels that only share tiles.
                    self._work(worker % self.shares.rows, worker // self.shares.rows)
        return ib.get()

    def _work(self, part: Any, share: Any) -> None:
        """All pieces of a part of the rows, each over a block of tiles; the next piece comes in while one runs."""
        from tvm import tirx
        from tvm.tirx.script import builder as tb

        total, shares = self.geometry.total_tiles, self.shares.tiles
        lo, hi = share * total // shares, (share + 1) * total // shares
        begin, end = self.first[part], self.first[part + 1]
        if self.touches_first:
            self._touch(self.order[begin])
        with tb.serial(tirx.ceildiv(hi - lo, self.tile_block)) as block:
            first = tb.Bind(lo + block * self.tile_block)
            behind = tb.Bind(tirx.min(hi, first + self.tile_block))
            self._begin_skipped(first, behind - first)
            with tb.serial(end - begin) as at:
                piece = tb.Bind(self.order[begin + at])
                # After the last piece comes the first one again, for the next block.
                following = tb.Bind(self.order[tirx.Select(begin + at + 1 < end, begin + at + 1, begin)])
                code_share, weight_share = (tb.Bind(self._field(piece, f)) for f in (_CODE_SHARE, _WEIGHT_SHARE))
                inside = [tb.Bind(self._field(piece, f)) for f in _RANGE] if self.ranges is not None else []
                with tb.serial(tirx.ceildiv(behind - first, self.at_once)) as step:
                    tile = first + step * self.at_once
                    last = tirx.min(tile + self.at_once, behind) - 1
                    run = (piece, following, step * code_share, step * weight_share, tile, last)
                    if not inside:
                        self._run(*run)
                    else:
                        with tb.If(_within(self._place(tile), inside)), tb.Then():
                            self._run(*run)

    def _begin_skipped(self, first: Any, count: Any) -> None:
        """Where the piece is skipped in which sums begin, set them to the bias."""
        from sparsetvm.schedules.x86 import tir
        from tvm import tirx
        from tvm.tirx.script import builder as tb

        if self.ranges is None:
            return
        g, begins = self.geometry, [tir.i32(int(bound)) for bound in self.ranges[0]]
        with tb.serial(count) as i:
            image, tile = self._place(first + i)
            outside = tirx.Not(_within((image, tile), begins))
            with tb.If(outside), tb.Then(), tb.serial(self.workload.m) as row:
                at = g.y0 + image * g.y_batch + tile * g.y_tile + row * g.row_stride
                tir.vstore(self.y, tir.splat(self.bias[row], g.lanes), at, g.lanes)

    def _field(self, piece: Any, field: int) -> Any:
        return self.table[piece * (_FIELDS if self.ranges is None else _FIELDS + len(_RANGE)) + field]

    def _touch(self, piece: Any) -> None:
        from tvm import tirx
        from tvm.tirx.script import builder as tb

        weights = tirx.address_of(self.w[self._field(piece, _WEIGHT)])
        lines = self._field(piece, _WEIGHT_LINES)
        tb.evaluate(tirx.call_extern("int32", f"{self.symbol}_touch", piece, weights, lines))

    def _run(self, piece: Any, following: Any, line: Any, weight_line: Any, at: Any, last: Any) -> None:
        """One run of a piece, on the tiles `at` to `last`: one or two."""
        from tvm import tirx
        from tvm.tirx.script import builder as tb

        ahead = tirx.min(self._field(following, _WEIGHT) + weight_line * 16, self.packed.arrays[0].size - 1)
        x, y, mask, residual = self._pointers(at)
        pointers = [self.w[ahead], x, y, self.w[self._field(piece, _WEIGHT)], self.bias[0], mask, residual]
        if self.second_tile:
            pointers.extend(self._pointers(last))
        name = f"{self.symbol}_run"
        addresses = (tirx.address_of(pointer) for pointer in pointers)
        tb.evaluate(tirx.call_extern("int32", name, piece, following, line, *addresses))
        if self.workload.epilogue.activation not in _IN_CODE:
            with tb.serial(last - at + 1) as i, tb.serial(self._field(piece, _FINISHED_ROWS)) as row:
                self._activate(at + i, self.rows[self._field(piece, _ROW) + row])

    def _place(self, at: Any) -> tuple[Any, Any]:
        """(image, tile of the image) of a tile."""
        tiles = self.geometry.tiles
        return (at // tiles, at % tiles) if self.geometry.batch > 1 else (0, at)

    def _pointers(self, at: Any) -> tuple[Any, Any, Any, Any]:
        """The first elements of X, Y, mask and residual of a tile."""
        g = self.geometry
        image, tile = self._place(at)
        y = self.y[g.y0 + image * g.y_batch + tile * g.y_tile]
        mask = self.lane_masks[tile * (self.lane_masks.shape[0] // g.mask.shape[0]) if g.mask is not None else 0]
        residual = y if self.r is None else self.r[g.r0 + image * g.r_batch + tile * g.r_tile]
        return self.x[g.x0 + image * g.x_batch + tile * g.x_tile], y, mask, residual

    def _activate(self, at: Any, row: Any) -> None:
        g = self.geometry
        image, tile = self._place(at)
        offset = g.y0 + image * g.y_batch + tile * g.y_tile + row * g.row_stride
        lane_mask = self.mask[tile] if g.mask is not None else None
        activate_in_place(self.y, offset, self.workload.epilogue, g.lanes, lane_mask)


def _tiles_at_once(config: Config, target: Target) -> int:
    """Tiles of one run of a piece."""
    return 1 if target.isa == "avx512" else pattern_asm_avx2.tiles_at_once(config.int("rows"))


def _streams_code(target: Target) -> bool:
    return target.isa == "avx512" and core_of(target).streams_code


def _tile_blocks(workload: Workload) -> tuple[int, ...]:
    total = tap_geometry(workload).total_tiles
    return (*(t for t in (4, 8, 16, 32, 64, 128) if t < total), total)


def _default_tiles(workload: Workload, target: Target) -> int:
    """Tiles whose activations take a quarter of L2.

    Where code and weights come from beyond L2 (prefetched), eight: enough to pay for the code, few enough that their
    activations come from L2. Measured with 49 tiles: 6 to 31 % faster than all at once.
    """
    blocks = _tile_blocks(workload)
    if BYTES_PER_NNZ * workload.nnz > target.l2 // 2:
        return blocks[-1] if blocks[-1] <= _FEW_TILES else _TILES_FROM_AFAR
    return max((t for t in blocks if t * _tile_bytes(workload) <= target.l2 // 4), default=blocks[0])


def _tile_bytes(workload: Workload) -> int:
    """Activations that one tile reads."""
    area = math.prod(workload.conv.kernel) if workload.conv else 1
    return 4 * tap_geometry(workload).lanes * workload.k // area


def _shares(geometry: TapGeometry, config: Config, target: Target) -> Shares:
    return shares_of(config.int("row_parts") if target.threads > 1 else 1, geometry, target.threads)


def _even_shares(m: int, rows: int, groups: int, parts: int) -> tuple[int, int]:
    """(rows of a group, groups of a piece), at most those given, with which `parts` get equal numbers of pieces."""
    per_part = -(-m // parts)
    count = -(-per_part // rows)
    return -(-per_part // count), max(d for d in range(1, min(count, groups) + 1) if count % d == 0)


def _pixel_blocks(workload: Workload) -> tuple[int, ...]:
    """Sizes of K blocks that keep to one pixel of images in lanes, so that whole blocks are skipped at borders."""
    conv = workload.conv
    if conv is None or conv.kernel == (1, 1) or not isinstance(workload.layout_in, BatchTiles):
        return ()
    channels = conv.in_channels // conv.groups
    return tuple(channels // parts for parts in (4, 3, 2, 1) if channels % parts == 0 and channels // parts >= _PIXEL)


def _always(geometry: TapGeometry) -> tuple[int, int, int, int]:
    return 0, geometry.batch, 0, geometry.tiles


def _skipped(geometry: TapGeometry, config: Config, target: Target) -> np.ndarray | None:
    """`geometry.inside` where pieces can be skipped that would only read zeros: if some column is always needed."""
    inside = geometry.inside
    if inside is None or _tiles_at_once(config, target) > 1 or _shares(geometry, config, target).rows > 1:
        return None
    always = (inside == _always(geometry)).all(1)
    return inside if always.any() and not always.all() else None


def _ranges(pieces: list[Piece], inside: np.ndarray | None, k_block: int) -> np.ndarray | None:
    """(pieces, 4): where each piece has anything but zeros to read."""
    if inside is None:
        return None
    blocks = [inside[piece.start : piece.start + k_block] for piece in pieces]
    return np.array([(b[:, 0].min(), b[:, 1].max(), b[:, 2].min(), b[:, 3].max()) for b in blocks], np.int32)


def _within(place: tuple[Any, Any], bounds: list[Any]) -> Any:
    """Whether an (image, tile) is in the range of a piece."""
    from tvm import tirx

    (image, tile), (first, end, left, right) = place, bounds
    return tirx.all(image >= first, image < end, tile >= left, tile < right)


def _piece_table(pieces: list[Piece], weights: int, ranges: np.ndarray | None) -> np.ndarray:
    """(pieces * fields,) int32: what the host must know of each piece; _ROW counts finished rows of earlier pieces."""
    rows, finished = [], 0
    for piece in pieces:
        count = piece.rows.size if piece.last else 0
        start = min(piece.weight, weights - 1)
        rows.append((finished, count, start, -(-4 * piece.weights // 64), piece.code_share, piece.weight_share))
        finished += count
    table = np.array(rows, np.int32)
    return (table if ranges is None else np.concatenate([table, ranges], 1)).ravel()


def _schedule(pieces: list[Piece], parts: int) -> tuple[np.ndarray, np.ndarray]:
    """(order, first): part i of the rows runs the pieces order[first[i] : first[i + 1]]."""
    shares = _share_rows(pieces, parts)
    order = np.concatenate([np.array(share) for share in shares])
    return order.astype(np.int32), np.cumsum([0, *map(len, shares)]).astype(np.int32)


def _share_rows(pieces: list[Piece], parts: int) -> list[list[int]]:
    """Deal whole row ranges to parts, the one with the most code first; K blocks of a range keep their order."""
    if parts == 1:
        return [list(range(len(pieces)))]
    ranges: dict[int, list[int]] = {}
    for i, piece in enumerate(pieces):
        ranges.setdefault(int(piece.rows[0]), []).append(i)
    cost = {row: sum(pieces[i].code_bytes for i in chosen) for row, chosen in ranges.items()}
    shares: list[list[int]] = [[] for _ in range(min(parts, len(ranges)))]
    load = [0] * len(shares)
    for row in sorted(ranges, key=lambda r: -cost[r]):
        lightest = load.index(min(load))
        shares[lightest].extend(ranges[row])
        load[lightest] += cost[row]
    # From layer to layer the same thread has the first rows: what it adds to its residual is what it has written.
    return sorted(shares)
