"""Pattern in code for AVX2: formats/pattern_asm.py with 16 registers and without broadcasting memory operands.

A non-zero is a broadcast of its weight and an FMA for each vector of the run:
    vbroadcastss disp8(%rdx), %ymm2;  vfmadd231ps %ymm0, %ymm2, %ymm15;  vfmadd231ps %ymm1, %ymm2, %ymm14
With one vector (8 positions) per run 13 rows share a load of x, and code is short: 15 bytes per non-zero. With two,
one broadcast feeds two FMAs and the code is fetched half as often, but has 25 bytes per non-zero and only 6 rows share
a load. A column with a single non-zero in the row group is a memory operand of its FMA.

The two vectors are two tiles with pointers of their own. For the last tile of an odd number both are the same: both
then read, compute and store the same values.
"""

from __future__ import annotations

import numpy as np

from sparsetvm.formats.pieces import CodePlan, Emitter, Epilog, Piece, assemble

REGISTERS = 16
# Pointers of the first and the second tile.
_X, _Y, _MASK, _RESIDUAL = ("%rdi", "%r13"), ("%rsi", "%r14"), ("%r8", "%r12"), ("%r9", "%r15")


class _Emitter(Emitter):
    """x is in the lowest registers, the broadcast weight in the next one, sums in the highest."""

    weight_bias = 128  # disp8 then covers 64 weights per bump
    zero = "vxorps %xmm0, %xmm0, %xmm0"

    def __init__(self, lanes: int, vectors: int, row_stride: int, epilog: Epilog, bias_rows: int) -> None:
        super().__init__(lanes, row_stride, epilog, bias_rows)
        self.tiles = range(vectors)
        self.lines.append(f"subq $-{self.weight_bias}, %rdx")  # one byte shorter than the sum of a positive number

    def registers_of(self, row: int) -> list[str]:
        return [f"{self.v}{REGISTERS - 1 - (row * len(self.tiles) + tile)}" for tile in self.tiles]

    def load(self, row: int, registers: list[str], first: bool) -> None:
        for tile, register in enumerate(registers):
            source = f"vbroadcastss {4 * row}(%rcx)" if first else f"vmovups {self.row_bytes * row}({_Y[tile]})"
            self.lines.append(f"{source}, {register}")

    def column(self, byte: int, sums: list[list[str]]) -> None:
        x = [f"{byte}({_X[tile]})" for tile in self.tiles]
        if len(sums) > 1:
            for tile in self.tiles:
                self.lines.append(f"vmovups {x[tile]}, {self.v}{tile}")
            x = [f"{self.v}{tile}" for tile in self.tiles]
        weight = f"{self.v}{len(self.tiles)}"
        for registers in sums:
            self.lines.append(f"vbroadcastss {self.next_weight()}(%rdx), {weight}")
            for source, register in zip(x, registers, strict=True):
                self.lines.append(f"vfmadd231ps {source}, {weight}, {register}")

    def prefetches(self, rows: list[int], first: bool, last: bool) -> list[str]:
        # One tile ahead of the second tile is one run ahead of the first, and so on.
        e, step = self.epilog, len(self.tiles)
        places = [(row, tile) for row in rows for tile in self.tiles]
        y_ahead = 4 * step * e.y_ahead
        lines = [f"prefetchw {self.row_bytes * row + y_ahead}({_Y[tile]})" for row, tile in places if first]
        if last and e.residual:
            bytes_ahead = [4 * (e.residual_stride * row + step * e.residual_ahead) for row, _ in places]
            lines += [f"prefetcht0 {at}({_RESIDUAL[tile]})" for at, (_, tile) in zip(bytes_ahead, places, strict=True)]
        return lines

    def finish(self, row: int, registers: list[str]) -> None:
        epilog = self.epilog
        for tile, register in enumerate(registers):
            if epilog.residual:
                residual = f"{4 * epilog.residual_stride * row}({_RESIDUAL[tile]})"
                self.lines.append(f"vaddps {residual}, {register}, {register}")
            if epilog.activation in ("relu", "clip"):
                self.lines.append(f"vmaxps {register}, {self.v}0, {register}")
            if epilog.activation == "clip":
                self.lines.append(f"vminps {register}, {self.v}1, {register}")
            if epilog.mask:
                self.lines.append(f"vandps ({_MASK[tile]}), {register}, {register}")

    def store(self, row: int, registers: list[str]) -> None:
        for tile, register in enumerate(registers):
            self.lines.append(f"vmovups {register}, {self.row_bytes * row}({_Y[tile]})")


def tiles_at_once(rows: int) -> int:
    """Tiles of one run for row groups of `rows` (at most 13): two when their sums fit into the registers."""
    return 2 if rows <= (REGISTERS - 2 - 1) // 2 else 1


def lane_masks(bits: np.ndarray, lanes: int) -> np.ndarray:
    """Lane masks as the code reads them, int32 (tiles * lanes), of (tiles,) uint16 with a bit per lane."""
    return -(bits[:, None] >> np.arange(lanes) & 1).astype(np.int32).ravel()


def emit_pieces(
    weight: np.ndarray,
    taps: tuple[np.ndarray, ...],
    rows_per_group: int,
    row_stride: int,
    lanes: int,
    vectors: int,
    plan: CodePlan,
    epilog: Epilog,
) -> tuple[list[Piece], np.ndarray]:
    """Instructions and weight stream for `weight` (m, k); a run of a piece computes `vectors` (1 or 2) tiles.

    Row r reads its column c at X[taps[r // rows_per_group][c]]. Pieces come in the order in which they must run, their
    rows are in the order of the plan. Registers: of the first and the second tile rdi, r13 X; rsi, r14 Y; r8, r12 masks
    (`lanes` int32, 0 or -1); r9, r15 residuals; for both rdx weights of the piece, rcx bias (m floats, then the clip
    bounds), r11 and rax the code and the weights of the next piece to prefetch; all vector registers are clobbered.
    """
    return assemble(
        weight, taps, rows_per_group, plan, lambda: _Emitter(lanes, vectors, row_stride, epilog, weight.shape[0])
    )
