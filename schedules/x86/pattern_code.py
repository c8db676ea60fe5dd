"""SpMM and sparse convolution with the non-zero pattern compiled into straight-line code.

    for K block, row groups (a piece of code):        # fetched once, stays in L1I / L2
        for tile of 16 positions:                     # activations of the K block stay in L1
            28 accumulators; per non-zero one FMA with its weight as a memory broadcast

Requires: AVX-512; X and Y in Tiled or Planes layouts that `supports_taps`; any epilogue (bias, residual, ReLU and clip
run inside the code, other activations as a sweep over the finished rows).
See formats/pattern_asm.py for the code and its source; the pieces are this project's answer to cold instruction fetch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sparsetvm.schedules.base import Packed, Template
from sparsetvm.schedules.x86.arguments import layer_args
from sparsetvm.schedules.x86.epilogue import activate_in_place, zero_borders
from sparsetvm.schedules.x86.geometry import TapGeometry, supports_taps, tap_geometry

from sparsetvm.core.config import Config
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload
from sparsetvm.formats.pattern_asm import CodePlan, Epilog, Piece, emit_pieces, llvm_function, prefetch_functions
from sparsetvm.space.knobs import Choice, Ordered
from sparsetvm.space.space import Space

_IN_CODE = ("none", "relu", "clip")
# Above this the code of a layer costs more build time and cache than it can win back.
_MAX_NNZ = 1_500_000


class PatternCode(Template):
    """Template x86.pattern_code."""

    name = "x86.pattern_code"
    version = 1

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
                Choice("order", ("k", "rows")),
            ),
        )

    def default(self, workload: Workload, target: Target) -> Config:
        knobs = self.space(workload, target).knobs
        k_block = min(knobs[1].values, key=lambda v: abs(int(v) - 384))
        return Config.of(self.name, rows=28, k_block=k_block, groups=2, order="k")

    def pack(
        self, weight: np.ndarray, bias: np.ndarray | None, workload: Workload, config: Config, target: Target
    ) -> Packed:
        geometry, epilogue = tap_geometry(workload), workload.epilogue
        plan = CodePlan(config.int("rows"), config.int("k_block"), config.int("groups"), config.str("order") == "rows")
        in_code = epilogue.activation if epilogue.activation in _IN_CODE else "none"
        epilog = Epilog(epilogue.residual, in_code, geometry.mask is not None)
        pieces, stream = emit_pieces(
            weight, geometry.taps, geometry.rows_per_group, geometry.row_stride, geometry.lanes, plan, epilog
        )
        bounds = np.array([epilogue.low, epilogue.high], np.float32)
        start = np.zeros(workload.m, np.float32) if bias is None else bias.astype(np.float32)
        # The assembler needs one weight even when no row has any.
        arrays = (
            stream if stream.size else np.zeros(1, np.float32),
            np.concatenate([start, bounds]),
            geometry.mask_bits(),
        )
        return Packed(arrays, {"pieces": pieces})

    def kernel(self, workload: Workload, config: Config, packed: Packed, target: Target, symbol: str) -> Any:
        return _host(workload, tap_geometry(workload), packed, target.threads, symbol)


def _as_i32(value: Any) -> Any:
    from tvm import tirx

    return tirx.const(value, "int32") if isinstance(value, int) else value


def _host(workload: Workload, geometry: TapGeometry, packed: Packed, threads: int, symbol: str) -> Any:
    """The TIR around the pieces: arguments, threads, loops over tiles, zero borders, activations outside the code."""
    from sparsetvm.schedules.x86 import tir
    from tvm import tirx
    from tvm.tirx.script import builder as tb

    pieces: list[Piece] = packed.meta["pieces"]
    weights = packed.arrays[0]
    functions = "".join(llvm_function(f"{symbol}_p{i}", piece.code) for i, piece in enumerate(pieces))
    functions += prefetch_functions(symbol, len(pieces))
    by_rows = threads > 1 and geometry.total_tiles < 2 * threads
    with tir.prim_func(symbol) as ib:
        x, r, (w, b, k), y = layer_args(workload, packed)

        def prefetch(i: int, first: Any, lines: Any, step: Any, weight_lines: Any = 0) -> None:
            at = tirx.min(pieces[i].weight + step * weight_lines * 16, weights.size - 1)
            tb.evaluate(
                tirx.call_extern(
                    "int32", f"{symbol}_f{i}", _as_i32(first), _as_i32(lines), tirx.address_of(w[at]),
                    _as_i32(weight_lines),
                )
            )  # fmt: skip

        def run(lo: Any, hi: Any, chosen: list[int]) -> None:
            prefetch(chosen[0], 0, _lines(pieces[chosen[0]].code_bytes), tirx.const(0, "int32"))
            for i, following in zip(chosen, [*chosen[1:], None], strict=True):
                piece = pieces[i]
                with tb.serial(hi - lo) as step:
                    at = lo + step
                    if following is not None:
                        # The next piece comes in while this one runs, a share of its lines per tile.
                        share = tirx.floordiv(_lines(pieces[following].code_bytes), hi - lo) + 1
                        weights_share = tirx.floordiv(_lines(4 * pieces[following].weights), hi - lo) + 1
                        prefetch(following, step * share, share, step, weights_share)
                    image, tile = (at // geometry.tiles, at % geometry.tiles) if geometry.batch > 1 else (0, at)
                    yo = geometry.y0 + image * geometry.y_batch + tile * geometry.y_tile
                    xo = geometry.x0 + image * geometry.x_batch + tile * geometry.x_tile
                    pointer = tirx.address_of
                    tb.evaluate(
                        tirx.call_extern(
                            "int32",
                            f"{symbol}_p{i}",
                            pointer(x[xo]),
                            pointer(y[yo]),
                            pointer(w[min(piece.weight, weights.size - 1)]),
                            pointer(b[0]),
                            pointer(k[tile if geometry.mask is not None else 0]),
                            pointer(r[yo] if r is not None else y[yo]),
                        )
                    )
                    if piece.last and workload.epilogue.activation not in _IN_CODE:
                        lane_mask = k[tile] if geometry.mask is not None else None
                        with tb.serial(piece.row_end - piece.row) as row:
                            offset = yo + (piece.row + row) * geometry.row_stride
                            activate_in_place(y, offset, workload.epilogue, geometry.lanes, lane_mask)

        with tb.attr(tirx.const(0, "int32"), "pragma_import_llvm", functions):
            zero_borders(y, geometry, workload.m, threads)
            every = list(range(len(pieces)))
            if threads == 1:
                run(0, geometry.total_tiles, every)
            elif by_rows:
                shares = _share_rows(pieces, threads)
                with tb.parallel(len(shares)) as worker:
                    for index, share in enumerate(shares):
                        with tb.If(worker == index), tb.Then():
                            run(0, geometry.total_tiles, share)
            else:
                total = geometry.total_tiles
                with tb.parallel(threads) as worker:
                    run(worker * total // threads, (worker + 1) * total // threads, every)
    return ib.get()


def _lines(size: int) -> int:
    """Cache lines of `size` bytes."""
    return -(-size // 64)


def _share_rows(pieces: list[Piece], threads: int) -> list[list[int]]:
    """Deal whole row ranges to threads, the one with the most code first; K blocks of a range keep their order."""
    ranges: dict[int, list[int]] = {}
    for i, piece in enumerate(pieces):
        ranges.setdefault(piece.row, []).append(i)
    cost = {row: sum(len(pieces[i].code) for i in chosen) for row, chosen in ranges.items()}
    shares: list[list[int]] = [[] for _ in range(min(threads, len(ranges)))]
    load = [0] * len(shares)
    for row in sorted(ranges, key=lambda r: -cost[r]):
        lightest = load.index(min(load))
        shares[lightest].extend(ranges[row])
        load[lightest] += cost[row]
    return shares
