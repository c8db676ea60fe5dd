"""Pattern in code: the non-zero positions of a weight matrix as straight-line AVX-512 instructions.

The idea is SparseRT's (Wang, PACT 2020), moved to a CPU: R output rows live in R vector registers, an activation vector
is loaded once per row group and column, and each non-zero is one instruction that reads its weight from memory,
    vfmadd231ps disp8(%rdx){1to16}, %zmm_x, %zmm_acc
so there are no indices, no branches, and rows of any length cost the same per non-zero. K is cut into blocks so that a
block of activations stays in L1; accumulators pass through Y between blocks.

formats/pieces.py cuts the code into pieces and adds their prefetches.
"""

from __future__ import annotations

import numpy as np

from sparsetvm.formats.pieces import CodePlan, Emitter, Epilog, Piece, assemble

_X_WINDOW = 127 * 64  # bytes of X that disp8 * 64 covers on either side of the base register


class _Emitter(Emitter):
    """x rotates through the lowest registers, sums are in the highest."""

    weight_bias = 512  # disp8 * 4 then covers 256 weights per bump
    zero = "vpxord %xmm0, %xmm0, %xmm0"

    def __init__(self, lanes: int, row_stride: int, epilog: Epilog, bias_rows: int, registers: int) -> None:
        super().__init__(lanes, row_stride, epilog, bias_rows)
        self.x_registers = registers
        self._x_base: int | None = None
        self._next_x = 0
        self.lines.append(f"addq ${self.weight_bias}, %rdx")
        if epilog.mask:
            self.lines.append("kmovw (%r8), %k1")

    def registers_of(self, row: int) -> list[str]:
        return [f"{self.v}{31 - row}"]

    def load(self, row: int, registers: list[str], first: bool) -> None:
        source = f"vbroadcastss {4 * row}(%rcx)" if first else f"vmovups {self.row_bytes * row}(%rsi)"
        self.lines.append(f"{source}, {registers[0]}")

    def column(self, byte: int, sums: list[list[str]]) -> None:
        x = self._load_x(byte)
        for (register,) in sums:
            self.lines.append(f"vfmadd231ps {self.next_weight()}(%rdx){{1to{self.lanes}}}, {x}, {register}")

    def _load_x(self, byte: int) -> str:
        """Load the activation vector at `byte` from the tile; returns its register."""
        register = f"{self.v}{self._next_x % self.x_registers}"
        self._next_x += 1
        step = 4 * self.lanes
        if byte % step == 0 and step == 64:
            if self._x_base is None or not -_X_WINDOW <= byte - self._x_base <= _X_WINDOW:
                self._x_base = byte + _X_WINDOW // 64 * 64
                self.lines.append(f"leaq {self._x_base}(%rdi), %r10")
            self.lines.append(f"vmovups {byte - self._x_base}(%r10), {register}")
        else:
            self.lines.append(f"vmovups {byte}(%rdi), {register}")
        return register

    def prefetches(self, rows: list[int], first: bool, last: bool) -> list[str]:
        e = self.epilog
        lines = [f"prefetchw {self.row_bytes * row + 4 * e.y_ahead}(%rsi)" for row in rows if first]
        if last and e.residual:
            lines += [f"prefetcht0 {4 * (e.residual_stride * row + e.residual_ahead)}(%r9)" for row in rows]
        return lines

    def finish(self, row: int, registers: list[str]) -> None:
        epilog, masked, (register,) = self.epilog, "{%k1}{z}" if self.epilog.mask else "", registers
        if epilog.residual:
            self.lines.append(f"vaddps {4 * epilog.residual_stride * row}(%r9), {register}, {register}")
        if epilog.activation == "relu":
            self.lines.append(f"vmaxps {register}, {self.v}0, {register}{masked}")
        elif epilog.activation == "clip":
            self.lines.append(f"vmaxps {register}, {self.v}0, {register}")
            self.lines.append(f"vminps {register}, {self.v}1, {register}{masked}")
        elif masked:
            self.lines.append(f"vmovaps {register}, {register}{masked}")

    def store(self, row: int, registers: list[str]) -> None:
        self.lines.append(f"vmovups {registers[0]}, {self.row_bytes * row}(%rsi)")


def emit_pieces(
    weight: np.ndarray,
    taps: tuple[np.ndarray, ...],
    rows_per_group: int,
    row_stride: int,
    lanes: int,
    plan: CodePlan,
    epilog: Epilog,
) -> tuple[list[Piece], np.ndarray]:
    """Instructions and weight stream for `weight` (m, k).

    Row r reads its column c at X[taps[r // rows_per_group][c]]. Pieces come in the order in which they must run; their
    rows are in the order of the plan.
    Registers: rdi X tile, rsi Y tile, rdx weights of the piece, rcx bias (m floats, then the clip bounds), r8 mask
    (uint16) of the tile, r9 residual tile, r11 and rax the code and the weights of the next piece that this run has to
    prefetch; r10 and all vector registers are clobbered.
    """
    x_registers = max(2, 32 - plan.rows)
    return assemble(
        weight,
        taps,
        rows_per_group,
        plan,
        lambda: _Emitter(lanes, row_stride, epilog, weight.shape[0], x_registers),
    )
