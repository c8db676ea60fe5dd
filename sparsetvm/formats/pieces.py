"""Pieces of straight-line code for a weight matrix: what all instruction sets share.

The code is cut into pieces (some row groups of one K block). The host runs each piece over a block of tiles before it
goes to the next: a piece is fetched once and stays in L1I / L2, where one stretch of code per layer would be streamed
for every tile.

No hardware prefetcher fetches code ahead of execution: straight-line code that comes from memory runs at 3 % of its
speed in L1I. So every piece carries prefetches of the piece after it, spread evenly over its instructions: a burst of
them would be dropped (AMD) or would stall (Intel).
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sparsetvm.formats.row_order import cluster_rows

REGISTER = {16: "zmm", 8: "ymm", 4: "xmm"}  # lanes -> vector register
_INSTRUCTION_BYTES = 8  # 7 for an FMA, up to 10 for a load with a long displacement
_NEWLINE = "\\0A"  # of an LLVM string


@dataclass(frozen=True)
class Epilog:
    """What the last K block does to a sum; other activations are left to the host.

    residual_stride: floats between the residuals of neighbouring rows. y_ahead, residual_ahead: floats from what a run
    stores and adds to what it should prefetch, 0 for its own lines (several instructions ahead) or one tile.
    """

    residual: bool
    residual_stride: int
    activation: str  # none, relu or clip
    mask: bool
    y_ahead: int = 0
    residual_ahead: int = 0


@dataclass(frozen=True)
class Piece:
    """Code for some `rows` and one K block, that from column `start` on; `weight` is its first weight in the stream.

    code: the instructions as the text of an LLVM inline-asm string; code_bytes: about how long they are in memory.
    weights: how many weights it reads. code_share, weight_share: cache lines of the next piece that one run prefetches.
    """

    code: str
    code_bytes: int
    rows: np.ndarray
    start: int
    weight: int
    weights: int
    last: bool
    code_share: int
    weight_share: int


@dataclass(frozen=True)
class CodePlan:
    """Row groups x K blocks. rows: registers per group; k_block: columns per block; groups: row groups per piece.

    runs: how often a worker runs a piece (once per tile): it spreads the prefetches of the next one over them; 0: none.
    sums_ahead: a group prefetches the sums that the next group of its piece goes on from (sums in one register only).
    x_ahead: floats from the X of a run to that of the next, which the groups of a piece prefetch between them; 0: none.
    """

    rows: int
    k_block: int
    groups: int
    rows_first: bool  # pieces ordered rows-outer (True) or K-outer (False)
    clustered: bool = True  # rows of a group share columns (True) or are neighbours in memory (False)
    runs: int = 1
    sums_ahead: bool = False
    x_ahead: int = 0


class Emitter(abc.ABC):
    """Collects the instructions of one piece, and the weights in the order in which they are read.

    Their order is the same for all instruction sets, a subclass contributes the instructions. A row has one sum in a
    register, or one for each tile that a run computes. weight_bias: bytes into the stream that rdx points to, and half
    of what a displacement covers between two moves of rdx.
    """

    weight_bias: int
    zero: str  # the instruction that clears register 0

    def __init__(self, lanes: int, row_stride: int, epilog: Epilog, bias_rows: int) -> None:
        self.v = f"%{REGISTER[lanes]}"
        self.lanes = lanes
        self.row_bytes = 4 * row_stride
        self.epilog = epilog
        self.bias_rows = bias_rows
        self.lines: list[str] = []
        self.weights: list[np.ndarray] = []
        self._count = 0
        self._weight_base = self.weight_bias

    def group(
        self, block: np.ndarray, rows: list[int], taps: np.ndarray, first: bool, last: bool, later: list[str]
    ) -> None:
        """Add a register group: `block` (rows, columns) of weights of the output `rows`, whose columns are at X[taps].

        first, last: whether sums start from the bias, and whether they end here. later: prefetches for later code.
        """
        mask = block != 0
        used = np.flatnonzero(mask.any(1) | first | last).tolist()
        sums = [self.registers_of(i) for i in range(len(block))]
        for i in used:
            self.load(rows[i], sums[i], first)
        ahead = [*self.prefetches([rows[i] for i in used], first, last), *later]
        for column in np.flatnonzero(mask.any(0)):
            hits = np.flatnonzero(mask[:, column]).tolist()
            self.lines.extend(ahead[:1])
            del ahead[:1]
            self.column(4 * int(taps[column]), [sums[i] for i in hits])
            self.weights.append(block[hits, column])
        if last:
            self._bounds()
        for i in used:
            if last:
                self.finish(rows[i], sums[i])
            self.store(rows[i], sums[i])

    def next_weight(self) -> int:
        """Displacement from rdx of the next weight; adds the instruction that moves rdx where it would be too long."""
        offset = 4 * self._count - self._weight_base
        if offset >= self.weight_bias:
            self.lines.append(f"addq ${2 * self.weight_bias}, %rdx")
            self._weight_base += 2 * self.weight_bias
            offset -= 2 * self.weight_bias
        self._count += 1
        return offset

    def _bounds(self) -> None:
        """What activations compare with: registers 0 and 1."""
        if self.epilog.activation == "relu":
            self.lines.append(self.zero)
        elif self.epilog.activation == "clip":
            self.lines.append(f"vbroadcastss {4 * self.bias_rows}(%rcx), {self.v}0")
            self.lines.append(f"vbroadcastss {4 * self.bias_rows + 4}(%rcx), {self.v}1")

    @abc.abstractmethod
    def registers_of(self, row: int) -> list[str]:
        """Registers of the sums of a row of the group."""

    @abc.abstractmethod
    def load(self, row: int, registers: list[str], first: bool) -> None:
        """Set sums to the bias, or to what the K block before has stored."""

    @abc.abstractmethod
    def column(self, byte: int, sums: list[list[str]]) -> None:
        """One FMA per sum with x at `byte` from the tile."""

    @abc.abstractmethod
    def prefetches(self, rows: list[int], first: bool, last: bool) -> list[str]:
        """Lines that the end of a group needs and that nothing has touched: Y before its first store, the residual."""

    @abc.abstractmethod
    def finish(self, row: int, registers: list[str]) -> None:
        """Residual, activation and mask of sums. Operand order makes max and min return NaN for a NaN sum."""

    @abc.abstractmethod
    def store(self, row: int, registers: list[str]) -> None:
        """Write sums to Y."""


def assemble(
    weight: np.ndarray,
    taps: tuple[np.ndarray, ...],
    rows_per_group: int,
    plan: CodePlan,
    begin: Callable[[], Emitter],
) -> tuple[list[Piece], np.ndarray]:
    """Pieces and weight stream; `begin` makes the emitter of each piece. The other arguments are `emit_pieces`'."""
    m, k = weight.shape
    bodies: list[_Body] = []
    order = _row_order(weight, rows_per_group, plan)
    for start, stop, k0 in _piece_order(m, k, rows_per_group, plan):
        emitter = begin()
        first, last = k0 == 0, k0 + plan.k_block >= k
        for row in range(start, stop, plan.rows):
            rows = order[row : min(row + plan.rows, stop)]
            block = weight[rows, k0 : k0 + plan.k_block]
            following = order[row + plan.rows : min(row + 2 * plan.rows, stop)]
            tap = taps[start // rows_per_group][k0 : k0 + plan.k_block]
            later: list[str] = []
            if plan.sums_ahead and not first:
                later += [f"prefetcht0 {emitter.row_bytes * at}(%rsi)" for at in following.tolist()]
            if plan.x_ahead:
                groups = -(-(stop - start) // plan.rows)
                lines = np.unique(4 * (tap + plan.x_ahead) // 64 * 64)
                share = lines[(row - start) // plan.rows :: groups]
                later += [f"prefetcht1 {at}(%rdi)" for at in share.tolist()]
            emitter.group(block, rows.tolist(), tap, first, last, later)
        bodies.append(_Body(_asm_text(emitter.lines), len(emitter.lines), order[start:stop], k0, emitter.weights, last))
    return _finish(bodies, plan.runs)


@dataclass(frozen=True)
class _Body:
    """A piece before its prefetches; `code` is text because a list of lines takes several times the memory."""

    code: str
    lines: int
    rows: np.ndarray
    start: int
    weights: list[np.ndarray]
    last: bool

    @property
    def count(self) -> int:
        return sum(part.size for part in self.weights)


def _finish(bodies: list[_Body], runs: int) -> tuple[list[Piece], np.ndarray]:
    """Pieces with the prefetches of their successors, and the weight stream."""
    pieces: list[Piece] = []
    position = 0
    ahead = runs > 0 and len(bodies) > 1
    for body, following in zip(bodies, [*bodies[1:], *bodies[:1]], strict=True):
        code_share = -(-following.lines * _INSTRUCTION_BYTES // (64 * runs)) if ahead else 0
        weight_share = -(-following.count * 4 // (64 * runs)) if ahead else 0
        code = _with_prefetches(body, code_share, weight_share)
        size = _INSTRUCTION_BYTES * (body.lines + code_share + weight_share)
        shares = (code_share, weight_share)
        pieces.append(Piece(code, size, body.rows, body.start, position, body.count, body.last, *shares))
        position += body.count
    stream = [part for body in bodies for part in body.weights] or [np.zeros(0)]
    return pieces, np.ascontiguousarray(np.concatenate(stream), np.float32)


def _with_prefetches(body: _Body, code_lines: int, weight_lines: int) -> str:
    prefetches = [f"prefetcht1 {64 * i}(%r11)" for i in range(code_lines)]
    for i in range(weight_lines):
        prefetches.insert(i * (code_lines + weight_lines) // weight_lines, f"prefetcht1 {64 * i}(%rax)")
    if not prefetches:
        return body.code
    lines = body.code.split(_NEWLINE)
    every = max(1, len(lines) // len(prefetches))
    parts = [_NEWLINE.join((p, *lines[i * every : (i + 1) * every])) for i, p in enumerate(prefetches)]
    rest = lines[len(prefetches) * every :]
    return _NEWLINE.join((*parts, *rest))


def _row_order(weight: np.ndarray, rows_per_group: int, plan: CodePlan) -> np.ndarray:
    """(m,) order in which rows form register groups, within each convolution group."""
    m = weight.shape[0]
    if not plan.clustered:
        return np.arange(m)
    starts = range(0, m, rows_per_group)
    return np.concatenate([g + cluster_rows(weight[g : g + rows_per_group] != 0, plan.rows) for g in starts])


def _piece_order(m: int, k: int, rows_per_group: int, plan: CodePlan) -> list[tuple[int, int, int]]:
    """(row start, row stop, K start) of each piece; pieces never mix convolution groups."""
    height = plan.rows * plan.groups
    rows = [
        (start, min(start + height, group + rows_per_group))
        for group in range(0, m, rows_per_group)
        for start in range(group, group + rows_per_group, height)
    ]
    blocks = list(range(0, k, plan.k_block))
    if plan.rows_first:
        return [(start, stop, k0) for start, stop in rows for k0 in blocks]
    return [(start, stop, k0) for k0 in blocks for start, stop in rows]


def _asm_text(lines: list[str]) -> str:
    """One string at once: the list of lines would take several times the memory."""
    return _NEWLINE.join(lines).replace("$", "$$")
