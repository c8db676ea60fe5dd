"""Pattern in code: the non-zero positions of a weight matrix as straight-line AVX-512 instructions.

The idea is SparseRT's (Wang, PACT 2020), moved to a CPU: R output rows live in R vector registers, an activation vector
is loaded once per row group and column, and each non-zero is one instruction that reads its weight from memory,
    vfmadd231ps disp8(%rdx){1to16}, %zmm_x, %zmm_acc
so there are no indices, no branches, and rows of any length cost the same per non-zero. K is cut into blocks so that a
block of activations stays in L1; accumulators pass through Y between blocks.

The code is cut into pieces (some row groups of one K block). The host runs each piece over all tiles before it goes to
the next: a piece is fetched once and stays in L1I / L2, where one stretch of code per layer would be streamed for every
tile.

No hardware prefetcher fetches code ahead of execution: straight-line code that comes from memory runs at 3 % of its
speed in L1I. So every piece carries prefetches of the piece after it, spread evenly over its instructions: a burst of
them would be dropped (AMD) or would stall (Intel).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sparsetvm.formats.row_order import cluster_rows

REGISTER = {16: "zmm", 8: "ymm", 4: "xmm"}
_WEIGHT_BIAS = 512  # rdx points 512 bytes into the stream: disp8 * 4 then covers 256 weights per bump
_INSTRUCTION_BYTES = 8  # 7 for an FMA, up to 10 for a load with a long displacement
_NEWLINE = "\\0A"  # of an LLVM string
_X_WINDOW = 127 * 64  # bytes of X that disp8 * 64 covers on either side of the base register


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
    """Code for some `rows` and one K block; `weight` is its first weight in the stream.

    code: the instructions as the text of an LLVM inline-asm string; code_bytes: about how long they are in memory.
    weights: how many weights it reads. code_share, weight_share: cache lines of the next piece that one run prefetches.
    """

    code: str
    code_bytes: int
    rows: np.ndarray
    weight: int
    weights: int
    last: bool
    code_share: int
    weight_share: int


@dataclass(frozen=True)
class CodePlan:
    """Row groups x K blocks. rows: registers per group; k_block: columns per block; groups: row groups per piece.

    runs: how often a worker runs a piece (once per tile): it spreads the prefetches of the next one over them; 0: none.
    """

    rows: int
    k_block: int
    groups: int
    rows_first: bool  # pieces ordered rows-outer (True) or K-outer (False)
    clustered: bool = True  # rows of a group share columns (True) or are neighbours in memory (False)
    runs: int = 1


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


class Emitter(Protocol):
    """What an instruction set contributes: the instructions of one piece, and the weights in their order."""

    lines: list[str]
    weights: list[np.ndarray]

    def group(self, block: np.ndarray, rows: list[int], taps: np.ndarray, first: bool, last: bool) -> None:
        """Add a register group: `block` (rows, columns) of weights of the output `rows`, whose columns are at X[taps].

        first, last: whether sums start from the bias, and whether they end here.
        """


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
            emitter.group(block, rows.tolist(), taps[start // rows_per_group][k0:], first, last)
        bodies.append(_Body(_asm_text(emitter.lines), len(emitter.lines), order[start:stop], emitter.weights, last))
    return _finish(bodies, plan.runs)


@dataclass(frozen=True)
class _Body:
    """A piece before its prefetches; `code` is text because a list of lines takes several times the memory."""

    code: str
    lines: int
    rows: np.ndarray
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
        pieces.append(Piece(code, size, body.rows, position, body.count, body.last, code_share, weight_share))
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


def llvm_functions(symbol: str, pieces: list[Piece], second_tile: bool = False) -> str:
    """LLVM IR of the two functions that a host calls; the pieces are subroutines in a section of their own.

    `i32 symbol_run(i32 piece, i32 next, i32 line, ptr w_next, ptr x, ptr y, ptr w, ptr bias, ptr mask, ptr residual)`
    runs a piece on a tile; it prefetches the code of the piece `next` from cache line `line` on, and weights from
    `w_next` on. `i32 symbol_touch(i32 piece, ptr w, i32 weight_lines)` reads the code and the weights of a piece, one
    byte per cache line: nothing has prefetched a worker's first piece. For AVX2 (`second_tile`) `symbol_run` takes X,
    Y, mask and residual of a second tile behind the others.

    TVM inlines imported functions into the host, so the code must stand outside of them: a host that holds hundreds of
    pieces inline takes LLVM minutes. The asm must be `noduplicate`, because it defines labels; the stack pointer skips
    the red zone around the call.
    """
    table = "".join(f".long .L{symbol}_p{i}-.L{symbol}_table\\0A" for i in range(len(pieces) + 1))
    body = "".join(f".L{symbol}_p{i}:\\0A{piece.code}\\0Aretq\\0A" for i, piece in enumerate(pieces))
    body += f".L{symbol}_p{len(pieces)}:\\0A"
    vectors = [f"ymm{i}" for i in range(16)] if second_tile else [*(f"xmm{i}" for i in range(32)), "k1"]
    clobbers = ",".join(f"~{{{register}}}" for register in vectors)
    more = ("ptr %x2", "ptr %y2", "ptr %m2", "ptr %r2") if second_tile else ()
    registers = "{rdx},{rdi},{rsi},0,{rcx},{r8},{r9},{r10},{r11},{rax}" + (
        ",{r13},{r14},{r12},{r15}" if second_tile else ""
    )
    arguments = ("ptr %x", "ptr %y", "ptr %w", "ptr %b", "ptr %m", "ptr %r")
    return (
        f"define i32 @{symbol}_run(i32 %i, i32 %next, i32 %line, ptr %wn, {', '.join((*arguments, *more))}) "
        "noinline nounwind {\n"
        ' %t = call ptr asm sideeffect ".pushsection .text.sparsetvm,\\22ax\\22,@progbits\\0A.p2align 6\\0A'
        f".L{symbol}_table:\\0A{table}.p2align 6\\0A{body}.popsection\\0A"
        f'leaq .L{symbol}_table(%rip), $0", "=r"() noduplicate nounwind\n'
        + _piece_address("i", "%i")
        + _piece_address("n", "%next")
        + " %ll = sext i32 %line to i64\n %lb = shl i64 %ll, 6\n %ahead = getelementptr i8, ptr %pn, i64 %lb\n"
        ' %q = call ptr asm sideeffect "leaq -128(%rsp), %rsp\\0Acallq *%r10\\0Aleaq 128(%rsp), %rsp", '
        f'"={registers},{clobbers},~{{memory}},~{{dirflag}},~{{fpsr}},~{{flags}}"'
        f"({', '.join((*arguments, 'ptr %pi', 'ptr %ahead', 'ptr %wn', *more))}) noduplicate nounwind\n"
        " ret i32 0\n}\n" + _touch_function(symbol)
    )


def _piece_address(name: str, piece: str) -> str:
    """IR that sets %p<name> to the code of a piece, given the table %t."""
    return (
        f" %x{name} = sext i32 {piece} to i64\n %s{name} = getelementptr i32, ptr %t, i64 %x{name}\n"
        f" %d{name} = load i32, ptr %s{name}\n %l{name} = sext i32 %d{name} to i64\n"
        f" %p{name} = getelementptr i8, ptr %t, i64 %l{name}\n"
    )


def _touch_function(symbol: str) -> str:
    loop = (
        "{0}:\n %i{0} = phi i64 [ 0, %{1} ], [ %n{0}, %b{0} ]\n %c{0} = icmp slt i64 %i{0}, {2}\n"
        " br i1 %c{0}, label %b{0}, label %{3}\nb{0}:\n %a{0} = getelementptr i8, ptr {4}, i64 %i{0}\n"
        " %v{0} = load volatile i8, ptr %a{0}\n %n{0} = add i64 %i{0}, 64\n br label %{0}\n"
    )
    return (
        f"define i32 @{symbol}_touch(i32 %piece, ptr %w, i32 %wlines) noinline nounwind {{\n"
        f'entry:\n %t = call ptr asm "leaq .L{symbol}_table(%rip), $0", "=r"()\n'
        " %end = add i32 %piece, 1\n"
        + _piece_address("i", "%piece")
        + _piece_address("e", "%end")
        + " %size = sub i64 %le, %li\n %wl = sext i32 %wlines to i64\n %ws = shl i64 %wl, 6\n br label %x\n"
        + loop.format("x", "entry", "%size", "y", "%pi")
        + loop.format("y", "x", "%ws", "done", "%w")
        + "done:\n ret i32 0\n}\n"
    )
