"""Shared building blocks of the x86 kernels: TIR through the IRBuilder, with Python doing the unrolling.

Vectors are TIR vector expressions of `lanes` float32. An expression that is used twice is compiled twice, so bind it
with `let` first. Everything here may only be called inside `prim_func`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as B

Expr = Any  # a TIR expression; TVM ships no types
Buffer = Any


# --- functions, arguments, loops --------------------------------------------------------------------------------------


@contextmanager
def kernel_function(symbol: str) -> Iterator[None]:
    """The frame of a kernel named `symbol`, inside an IRBuilder.

    Buffers do not alias, and Relax must not fuse into the kernel (op_pattern 8, opaque).
    """
    with B.prim_func(s_tir=True):
        B.func_name(symbol)
        B.func_attr({"global_symbol": symbol, "tirx.noalias": True, "op_pattern": 8})
        yield


@contextmanager
def prim_func(symbol: str) -> Iterator[IRBuilder]:
    """A builder with an open kernel frame; afterwards `.get()` of the builder is the PrimFunc.

    Scratch memory must come from `scratch`: TVM merges `let` cells with other small buffers of scope "global", and then
    rejects a kernel that reads scalars of them.
    """
    with IRBuilder() as builder, kernel_function(symbol):
        yield builder


def flat_args(**shapes: Sequence[int | str]) -> list[Buffer]:
    """Declare all arguments, in order and with their n-d shapes; return 1-D aliases of them.

    A shape may end in a dtype name, float32 otherwise. TIR wants every argument declared before anything else, hence
    one call: `x, taps, y = flat_args(X=(4, 16), taps=(9, "int32"), Y=(64,))`.
    """
    arguments = []
    for name, spec in shapes.items():
        dtype = spec[-1] if isinstance(spec[-1], str) else "float32"
        shape = tuple(int(d) for d in spec if not isinstance(d, str))
        arguments.append((B.arg(name, B.buffer(shape, dtype)), math.prod(shape), dtype))
    return [B.decl_buffer((size,), dtype, data=argument.data) for argument, size, dtype in arguments]


def outer(extent: int, threads: int) -> Any:
    """The outermost loop of a kernel: parallel when there are several threads and iterations to share."""
    return B.parallel(extent) if threads > 1 and extent > 1 else B.serial(extent)


def scratch(floats: int) -> Buffer:
    """Uninitialised float32 scratch memory; inside a parallel loop every thread gets its own."""
    # TVM may merge "global" buffers with cells on the stack (see `prim_func`), but never "local" ones.
    return B.alloc_buffer((floats,), "float32", scope="local")


# --- vectors ----------------------------------------------------------------------------------------------------------


def f32(value: float) -> Expr:
    """A float32 constant."""
    return tirx.const(float(value), "float32")


def i32(value: int) -> Expr:
    """An int32 constant."""
    return tirx.const(value, "int32")


def splat(value: Expr | float, lanes: int) -> Expr:
    """A vector whose lanes all hold a scalar expression or Python number."""
    return tirx.Broadcast(f32(value) if isinstance(value, (int, float)) else value, lanes)


def vload(buffer: Buffer, offset: Expr, lanes: int) -> Expr:
    """`lanes` consecutive floats of a flat buffer."""
    return buffer[tirx.Ramp(offset, 1, lanes)]


def strided(start: Expr, step: int, lanes: int) -> Expr:
    """Index of every `step`-th float from `start` on: a gather, one float at a time."""
    return tirx.Ramp(start, step, lanes)


def vstore(buffer: Buffer, value: Expr, offset: Expr, lanes: int) -> None:
    """Store a vector to a flat buffer."""
    B.buffer_store(buffer, value, [tirx.Ramp(offset, 1, lanes)])


def lane_mask(first: int, end: int, lanes: int) -> Expr:
    """Constant mask: True for lanes first <= i < end."""
    ramp = tirx.Ramp(i32(0), i32(1), lanes)
    below = ramp < tirx.Broadcast(i32(end), lanes)
    return below if first <= 0 else tirx.And(ramp >= tirx.Broadcast(i32(first), lanes), below)


def vload_lanes(buffer: Buffer, offset: Expr, lanes: int, first: int, end: int, fill: float = 0.0) -> Expr:
    """Load lanes first <= i < end only (no other address is touched); the others are `fill`."""
    first, end = max(first, 0), min(end, lanes)
    if first >= end:
        return splat(fill, lanes)
    if (first, end) == (0, lanes):
        return vload(buffer, offset, lanes)
    mask = lane_mask(first, end, lanes)
    loaded = B.masked_load(f"float32x{lanes}", buffer, tirx.Ramp(offset, 1, lanes), mask)
    return tirx.Select(mask, loaded, splat(fill, lanes))


def vstore_lanes(buffer: Buffer, value: Expr, offset: Expr, lanes: int, first: int, end: int) -> None:
    """Store lanes first <= i < end only."""
    first, end = max(first, 0), min(end, lanes)
    if first >= end:
        return
    if (first, end) == (0, lanes):
        vstore(buffer, value, offset, lanes)
        return
    B.evaluate(B.masked_store(buffer, value, tirx.Ramp(offset, 1, lanes), lane_mask(first, end, lanes)))


def keep_lanes(value: Expr, lanes: int, end: int) -> Expr:
    """`value` in lanes i < end, zero in the others."""
    return value if end >= lanes else tirx.Select(lane_mask(0, end, lanes), value, splat(0.0, lanes))


def keep_where(value: Expr, real: Sequence[bool]) -> Expr:
    """`value` in the lanes where the constant mask `real` is True, zero in the others."""
    if all(real):
        return value
    lanes = len(real)
    # Lane i of the shuffle is lane i of `value`, or of a vector of zeros.
    return tirx.Shuffle([value, splat(0.0, lanes)], [i if keep else lanes + i for i, keep in enumerate(real)])


def _cell(dtype: str) -> Buffer:
    """A buffer of one scalar or vector that LLVM shall turn into a register.

    TVM takes memory of scope "local" from its workspace pool: LLVM then keeps the value in a register inside a loop and
    writes it back behind it. Of scope "global", and below 1 kB, it is a stack slot and vanishes.
    """
    return B.alloc_buffer((1,), dtype, scope="global")


def prefetch(buffer: Buffer, offset: Expr, level: int = 2) -> None:
    """Bring the cache line of buffer[offset] into the cache of that level; the address may lie behind the end."""
    pointer = B.address_of(buffer[offset])
    B.evaluate(tirx.call_llvm_intrin("void", "llvm.prefetch", pointer, i32(0), i32(4 - level), i32(1)))


def let(value: Expr) -> Expr:
    """Compute `value` here and once; the result may be used any number of times.

    Not `B.Bind`: TVM inlines that again, also past a store that changes what the expression reads.
    """
    cell = _cell(value.ty.dtype)
    B.buffer_store(cell, value, [0])
    return cell[0]


class Registers:
    """`count` vectors meant to live in registers: read `r[i]`, write `r[i] = value`, with Python indices."""

    def __init__(self, count: int, lanes: int, fill: float | None = None) -> None:
        self.lanes = lanes
        # One buffer each: a single one of 1 kB or more would be memory.
        self.cells = [_cell(f"float32x{lanes}") for _ in range(count)]
        if fill is not None:
            for index in range(count):
                self[index] = splat(fill, lanes)

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, index: int) -> Expr:
        return self.cells[index][0]

    def __setitem__(self, index: int, value: Expr) -> None:
        B.buffer_store(self.cells[index], value, [0])


def vmax(a: Expr, b: Expr) -> Expr:
    """Lane-wise maximum, one vmaxps: `b` where `b` is NaN."""
    return tirx.Select(b < a, a, b)


def vmax_nan(a: Expr, b: Expr) -> Expr:
    """Lane-wise maximum, NaN where either is NaN; `a` must be bound with `let`."""
    return tirx.Select(tirx.isnan(a), a, vmax(a, b))


def vmin(a: Expr, b: Expr) -> Expr:
    """Lane-wise minimum, one vminps: `b` where `b` is NaN."""
    return tirx.Select(a < b, a, b)


def bits(value: Expr, dtype: str) -> Expr:
    """The same bits as another vector type, e.g. "int32x16"."""
    return tirx.reinterpret(dtype, value)


# --- across lanes -----------------------------------------------------------------------------------------------------


def every(vectors: Sequence[Expr], step: int, first: int, lanes: int) -> Expr:
    """Lanes first, first + step, ... of the concatenated vectors."""
    return tirx.Shuffle(list(vectors), [first + step * i for i in range(lanes)])


def reduce_lanes(vector: Expr, lanes: int, combine: Callable[[Expr, Expr], Expr]) -> Expr:
    """Combine all lanes; every lane of the result holds the total. `vector` must be bound with `let`."""
    half = lanes // 2
    while half:
        swapped = tirx.Shuffle([vector], [i ^ half for i in range(lanes)])
        vector = let(combine(vector, swapped))
        half //= 2
    return vector


def reduce_each(vectors: Sequence[Expr], lanes: int, combine: Callable[[Expr, Expr], Expr]) -> Expr:
    """Reduce each of `lanes` vectors over its lanes: lane i of the result is the total of vector i."""
    level = list(vectors)
    while len(level) > 1:
        pairs = [(let(a), let(b)) for a, b in zip(level[::2], level[1::2], strict=True)]
        level = [let(combine(every(p, 2, 0, lanes), every(p, 2, 1, lanes))) for p in pairs]
    return level[0]


def is_non_zero(value: Expr, lanes: int) -> Expr:
    """Mask of the lanes that hold anything but one of the zeros: NaN as well, which TIR's `!=` of floats leaves out."""
    magnitude = tirx.bitwise_and(bits(value, f"int32x{lanes}"), tirx.Broadcast(i32(0x7FFFFFFF), lanes))
    return tirx.NE(magnitude, tirx.Broadcast(i32(0), lanes))


def compress(vector: Expr, mask: Expr) -> Expr:
    """The lanes of 16 floats or int32 that the mask has, moved together; zeros behind them. AVX-512."""
    kind = "f32" if str(vector.ty.dtype).startswith("float") else "i32"
    zero = splat(0.0, 16) if kind == "f32" else tirx.Broadcast(i32(0), 16)
    name = f"llvm.x86.avx512.mask.compress.v16{kind}"
    return tirx.call_llvm_pure_intrin(vector.ty.dtype, name, vector, zero, mask)


def sum_lanes(ints: Expr) -> Expr:
    """The sum of the lanes of 16 int32."""
    return tirx.call_llvm_pure_intrin("int32", "llvm.vector.reduce.add.v16i32", ints)


def count_lanes(mask: Expr) -> Expr:
    """How many of 16 lanes a mask has. LLVM makes one popcnt of it."""
    return sum_lanes(tirx.Select(mask, tirx.Broadcast(i32(1), 16), tirx.Broadcast(i32(0), 16)))


def transpose(rows: Sequence[Expr], lanes: int) -> list[Expr]:
    """Transpose a lanes x lanes block held in vectors, in log2(lanes) rounds of two-source shuffles."""
    block = [let(row) for row in rows]
    distance = 1
    while distance < lanes:
        low = [i if not i & distance else lanes + (i ^ distance) for i in range(lanes)]
        high = [(i | distance) if not i & distance else lanes + i for i in range(lanes)]
        step = list(block)
        for i in range(lanes):
            if not i & distance:
                pair = [block[i], block[i | distance]]
                step[i] = let(tirx.Shuffle(pair, low))
                step[i | distance] = let(tirx.Shuffle(pair, high))
        block = step
        distance *= 2
    return block


# --- functions --------------------------------------------------------------------------------------------------------

_LN2 = 0.6931471805599453
# exp(r) = 1 + r + r^2 P(r) on |r| <= ln(2) / 2 within 1.1e-7, by weighted least squares; low to high.
_EXP = (0.49999232, 0.16667114, 0.04189012, 0.00831253)
# erf(x) = x P(x^2) / Q(x^2) on |x| <= 4; the rational approximation that Eigen uses; high to low.
_ERF_P = (
    -2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
    -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02,
)  # fmt: skip
_ERF_Q = (
    -1.45660718464996e-05,
    -2.13374055278905e-04,
    -1.68282697438203e-03,
    -7.37332916720468e-03,
    -1.42647390514189e-02,
)
# erf(x / sqrt(2)) / 2 = x P(x^2) / Q(x^2).
_GELU_P = tuple(c / 2**k / math.sqrt(8.0) for c, k in zip(_ERF_P, range(6, -1, -1), strict=True))
_GELU_Q = tuple(c / 2**k for c, k in zip(_ERF_Q, range(4, -1, -1), strict=True))
_EXP_LOW, _EXP_HIGH = -87.0, 88.0


def polynomial(x: Expr, coefficients: Sequence[float], lanes: int) -> Expr:
    """Horner's scheme, highest coefficient first; `x` must be bound with `let`."""
    value = splat(coefficients[0], lanes)
    for coefficient in coefficients[1:]:
        value = value * x + splat(coefficient, lanes)
    return let(value)


def exp_vec(x: Expr, lanes: int, upper: bool = True) -> Expr:
    """exp(x) with x clamped to [-87, 88] (no upper clamp with `upper` False, for x <= 0); NaN stays NaN."""
    x = let(vmax(splat(_EXP_LOW, lanes), x))
    if upper:
        x = let(vmin(splat(_EXP_HIGH, lanes), x))
    return _exp(x, 1.0, lanes)


def _exp(x: Expr, sign: float, lanes: int) -> Expr:
    """exp(sign * x) for sign * x in [-87.3, 88]; `x` must be bound with `let`.

    2^n * exp(r) with r = sign * x - n ln 2; n comes from adding 1.5 * 2^23, whose low mantissa bits then are n.
    """
    magic = splat(12582912.0, lanes)
    shifted = let(x * splat(sign / _LN2, lanes) + magic)
    n = let(shifted - magic)
    product = n * splat(-_LN2, lanes)
    r = let(product + x) if sign > 0 else let(product - x)
    mantissa = polynomial(r, (*_EXP[::-1], 1.0, 1.0), lanes)
    if lanes == 16:
        name = "llvm.x86.avx512.mask.scalef.ps.512"
        rest = (splat(0.0, lanes), tirx.const(-1, "int16"), i32(4))  # unused: all lanes count; 4: the usual rounding
        return let(tirx.call_llvm_pure_intrin("float32x16", name, mantissa, n, *rest))
    ones = tirx.Broadcast(i32(0x3F800000), lanes)
    exponent = (bits(shifted, f"int32x{lanes}") << tirx.Broadcast(i32(23), lanes)) + ones
    return let(mantissa * bits(exponent, f"float32x{lanes}"))


def reciprocal(x: Expr, lanes: int) -> Expr:
    """1 / x within 1.5 ulp for 2^-120 < |x| < 2^126; `x` must be bound with `let`.

    AVX-512: a 14-bit estimate and one Newton step (a division of 16 lanes blocks its port for 16 cycles).
    """
    if lanes != 16:
        return let(splat(1.0, lanes) / x)
    name = "llvm.x86.avx512.rcp14.ps.512"
    estimate = let(tirx.call_llvm_pure_intrin("float32x16", name, x, splat(0.0, lanes), tirx.const(-1, "int16")))
    return let(estimate + estimate * (splat(1.0, lanes) - x * estimate))


def sigmoid_vec(x: Expr, lanes: int) -> Expr:
    """1 / (1 + exp(-x)); NaN stays NaN."""
    return _sigmoid(let(vmax(splat(-_EXP_HIGH, lanes), x)), lanes)


def _sigmoid(x: Expr, lanes: int) -> Expr:
    """The same for x >= -88; `x` must be bound with `let`."""
    x = let(vmin(splat(-_EXP_LOW, lanes), x))
    return reciprocal(let(_exp(x, -1.0, lanes) + splat(1.0, lanes)), lanes)


def tanh_vec(x: Expr, lanes: int) -> Expr:
    """tanh(x) = 2 sigmoid(2x) - 1, absolute error below 3e-7; NaN stays NaN."""
    return let(sigmoid_vec(let(x + x), lanes) * splat(2.0, lanes) - splat(1.0, lanes))


def _gelu(x: Expr, lanes: int) -> Expr:
    """x (1 + erf(x / sqrt(2))) / 2. At -4 sqrt(2) it is 0 within 1e-7, and stays at that for all x below."""
    x = let(vmax(splat(-4.0 * math.sqrt(2.0), lanes), x))
    clamped = let(vmin(splat(4.0 * math.sqrt(2.0), lanes), x))
    square = let(clamped * clamped)
    top = let(clamped * polynomial(square, _GELU_P, lanes))
    return let(x * let(top * reciprocal(polynomial(square, _GELU_Q, lanes), lanes) + splat(0.5, lanes)))


def _gelu_tanh(x: Expr, lanes: int) -> Expr:
    # 0.5 (1 + tanh(u)) = sigmoid(2u); below -10 the result is 0 within 1e-20.
    x = let(vmax(splat(-10.0, lanes), x))
    scale = 2.0 * math.sqrt(2.0 / math.pi)
    cubic = let(x * x) * splat(scale * 0.044715, lanes) + splat(scale, lanes)
    return let(x * _sigmoid(let(x * cubic), lanes))


def _silu(x: Expr, lanes: int) -> Expr:
    x = let(vmax(splat(_EXP_LOW, lanes), x))
    return let(x * _sigmoid(x, lanes))


def _hard_swish(x: Expr, lanes: int) -> Expr:
    line = let(x * splat(1.0 / 6.0, lanes) + splat(0.5, lanes))
    return let(x * vmin(splat(1.0, lanes), let(vmax(splat(0.0, lanes), line))))


def activated(x: Expr, activation: str, low: float, high: float, lanes: int) -> Expr:
    """`activation` of one vector; `x` must be bound with `let` unless the activation is "none", "relu" or "clip".

    Names are those of core.workload.Activation. Absolute and relative error stay below 1e-6 (whichever is larger);
    NaN gives NaN, for relu and clip as well.
    """
    if activation == "none":
        return x
    if activation == "relu":
        return let(vmax(splat(0.0, lanes), let(x)))
    if activation == "clip":
        return let(vmin(splat(high, lanes), let(vmax(splat(low, lanes), let(x)))))
    return _FUNCTIONS[activation](x, lanes)


_FUNCTIONS = {
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "sigmoid": sigmoid_vec,
    "silu": _silu,
    "hard_swish": _hard_swish,
    "tanh": tanh_vec,
}
