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

from sparsetvm.formats.pieces import REGISTER, CodePlan, Epilog, Piece, assemble

_WEIGHT_BIAS = 512  # rdx points 512 bytes into the stream: disp8 * 4 then covers 256 weights per bump
_X_WINDOW = 127 * 64  # bytes of X that disp8 * 64 covers on either side of the base register


class _Emitter:
    """Collects the instructions of one piece and the weights in the order in which they are read."""

    def __init__(self, lanes: int, row_stride: int, epilog: Epilog, bias_rows: int, registers: int) -> None:
        self.v = REGISTER[lanes]
        self.lanes = lanes
        self.row_bytes = 4 * row_stride
        self.epilog = epilog
        self.bias_rows = bias_rows
        self.x_registers = registers
        self.lines: list[str] = []
        self.weights: list[np.ndarray] = []
        self.count = 0
        self._weight_base = _WEIGHT_BIAS
        self._x_base: int | None = None
        self._next_x = 0

    def begin(self) -> None:
        self.lines.append(f"addq ${_WEIGHT_BIAS}, %rdx")
        if self.epilog.mask:
            self.lines.append("kmovw (%r8), %k1")

    def group(self, block: np.ndarray, rows: list[int], taps: np.ndarray, first: bool, last: bool) -> None:
        """See `Emitter`."""
        mask = block != 0
        used = np.flatnonzero(mask.any(1) | first | last).tolist()
        accumulator = [f"%{self.v}{31 - i}" for i in range(len(block))]
        for i in used:
            self.load_accumulator(rows[i], accumulator[i], first)
        ahead = self.prefetches([rows[i] for i in used], first, last)
        for column in np.flatnonzero(mask.any(0)):
            hits = np.flatnonzero(mask[:, column]).tolist()
            self.lines.extend(ahead[:1])
            del ahead[:1]
            x = self.load_x(int(taps[column]))
            self.fma(x, [accumulator[i] for i in hits], block[hits, column])
        if last:
            self.bounds()
        for i in used:
            if last:
                self.finish(rows[i], accumulator[i])
            self.store(rows[i], accumulator[i])

    def load_x(self, offset: int) -> str:
        """Load the activation vector at float `offset` from the tile; returns its register."""
        register = f"%{self.v}{self._next_x % self.x_registers}"
        self._next_x += 1
        byte = 4 * offset
        step = 4 * self.lanes
        if byte % step == 0 and step == 64:
            if self._x_base is None or not -_X_WINDOW <= byte - self._x_base <= _X_WINDOW:
                self._x_base = byte + _X_WINDOW // 64 * 64
                self.lines.append(f"leaq {self._x_base}(%rdi), %r10")
            self.lines.append(f"vmovups {byte - self._x_base}(%r10), {register}")
        else:
            self.lines.append(f"vmovups {byte}(%rdi), {register}")
        return register

    def fma(self, x: str, accumulators: list[str], values: np.ndarray) -> None:
        for accumulator in accumulators:
            offset = 4 * self.count - self._weight_base
            if offset >= _WEIGHT_BIAS:
                self.lines.append(f"addq ${2 * _WEIGHT_BIAS}, %rdx")
                self._weight_base += 2 * _WEIGHT_BIAS
                offset -= 2 * _WEIGHT_BIAS
            self.lines.append(f"vfmadd231ps {offset}(%rdx){{1to{self.lanes}}}, {x}, {accumulator}")
            self.count += 1
        self.weights.append(values)

    def load_accumulator(self, row: int, accumulator: str, first: bool) -> None:
        source = f"vbroadcastss {4 * row}(%rcx)" if first else f"vmovups {self.row_bytes * row}(%rsi)"
        self.lines.append(f"{source}, {accumulator}")

    def finish(self, row: int, accumulator: str) -> None:
        """Residual and activation of a finished sum. Operand order makes max and min return NaN for a NaN sum."""
        epilog, masked = self.epilog, "{%k1}{z}" if self.epilog.mask else ""
        if epilog.residual:
            self.lines.append(f"vaddps {4 * epilog.residual_stride * row}(%r9), {accumulator}, {accumulator}")
        if epilog.activation == "relu":
            self.lines.append(f"vmaxps {accumulator}, %{self.v}0, {accumulator}{masked}")
        elif epilog.activation == "clip":
            self.lines.append(f"vmaxps {accumulator}, %{self.v}0, {accumulator}")
            self.lines.append(f"vminps {accumulator}, %{self.v}1, {accumulator}{masked}")
        elif masked:
            self.lines.append(f"vmovaps {accumulator}, {accumulator}{masked}")

    def prefetches(self, rows: list[int], first: bool, last: bool) -> list[str]:
        """Lines that the end of a group needs and that nothing has touched: Y before its first store, the residual."""
        e = self.epilog
        lines = [f"prefetchw {self.row_bytes * row + 4 * e.y_ahead}(%rsi)" for row in rows if first]
        if last and e.residual:
            lines += [f"prefetcht0 {4 * (e.residual_stride * row + e.residual_ahead)}(%r9)" for row in rows]
        return lines

    def bounds(self) -> None:
        if self.epilog.activation == "relu":
            self.lines.append("vpxord %xmm0, %xmm0, %xmm0")
        elif self.epilog.activation == "clip":
            self.lines.append(f"vbroadcastss {4 * self.bias_rows}(%rcx), %{self.v}0")
            self.lines.append(f"vbroadcastss {4 * self.bias_rows + 4}(%rcx), %{self.v}1")

    def store(self, row: int, accumulator: str) -> None:
        self.lines.append(f"vmovups {accumulator}, {self.row_bytes * row}(%rsi)")


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

    def begin() -> _Emitter:
        emitter = _Emitter(lanes, row_stride, epilog, weight.shape[0], max(2, 32 - plan.rows))
        emitter.begin()
        return emitter

    return assemble(weight, taps, rows_per_group, plan, begin)
