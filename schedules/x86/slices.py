"""Kernels of runs of any size: what cuts a tensor into slices along one axis, puts results together and plans the run.

    take: part[o, s, i] = whole[o, min(at + s, total - 1), i]      slices past the end repeat the last position
    put:  whole[o, at + s, i] = part[o, s, i] where at + s < total
    fill: mask[s] = real or padded value, by s < total
    plan: for each bucket, (first position, count) of its pieces, from a table

`total` is the size at run time, an int64 argument or a symbolic dimension; o and i run over the axes before and after.

Requires: plain tensors; any CPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from sparsetvm.schedules.x86 import tir
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as B

_OPAQUE = 8  # relax.OpPatternKind: nothing is fused with it


@contextmanager
def _function(symbol: str) -> Iterator[IRBuilder]:
    with IRBuilder() as builder, B.prim_func(s_tir=True):
        B.func_name(symbol)
        attributes = {"tirx.noalias": True, "tirx.is_scheduled": True, "op_pattern": _OPAQUE}
        B.func_attr({"global_symbol": symbol, **attributes})
        yield builder


def _i64(value: int) -> tir.Expr:
    return tirx.const(value, "int64")


class _Slices:
    """A tensor of unknown size along one axis beside a part of it; offsets of rows of `inner` elements."""

    def __init__(self, shape: Sequence[int], axis: int, dtype: str) -> None:
        self.total = tirx.Var("total", "int64")
        self.outer, self.inner = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
        self.size, self.dtype = shape[axis], dtype
        self.part_shape = tuple(shape)
        self.whole_shape = (*shape[:axis], self.total, *shape[axis + 1 :])

    def flat(self, buffer: tir.Buffer, size: tir.Expr) -> tir.Buffer:
        return B.decl_buffer((self.outer * size * self.inner,), self.dtype, data=buffer.data)

    @contextmanager
    def rows(self, threads: int) -> Iterator[tuple[tir.Expr, tir.Expr]]:
        """Loops over o and s."""
        count = _i64(self.outer * self.size)
        shared = threads > 1 and self.outer * self.size > 1
        with B.parallel(count) if shared else B.serial(count) as row:
            yield row // self.size, row % self.size


def take_kernel(shape: Sequence[int], axis: int, dtype: str, threads: int, symbol: str) -> tir.Expr:
    """PrimFunc (whole, at, part); `shape` is the part's."""
    slices = _Slices(shape, axis, dtype)
    with _function(symbol) as builder:
        whole = B.arg("X", B.buffer(slices.whole_shape, dtype))
        at = B.arg("at", B.int64())
        part = B.arg("Y", B.buffer(slices.part_shape, dtype))
        source, out = slices.flat(whole, slices.total), slices.flat(part, _i64(slices.size))
        with slices.rows(threads) as (o, s):
            first = (o * slices.total + tirx.min(at + s, slices.total - 1)) * slices.inner
            with B.serial(_i64(slices.inner)) as i:
                B.buffer_store(out, source[first + i], [(o * slices.size + s) * slices.inner + i])
    return builder.get()


def put_kernel(shape: Sequence[int], axis: int, dtype: str, threads: int, symbol: str) -> tir.Expr:
    """PrimFunc (part, at, whole); `shape` is the part's."""
    slices = _Slices(shape, axis, dtype)
    with _function(symbol) as builder:
        part = B.arg("X", B.buffer(slices.part_shape, dtype))
        at = B.arg("at", B.int64())
        whole = B.arg("Y", B.buffer(slices.whole_shape, dtype))
        source, out = slices.flat(part, _i64(slices.size)), slices.flat(whole, slices.total)
        with slices.rows(threads) as (o, s), B.If(at + s < slices.total), B.Then():
            first = (o * slices.total + at + s) * slices.inner
            with B.serial(_i64(slices.inner)) as i:
                B.buffer_store(out, source[(o * slices.size + s) * slices.inner + i], [first + i])
    return builder.get()


def new_kernel(shape: Sequence[int], axis: int, dtype: str, symbol: str) -> tir.Expr:
    """PrimFunc (whole) that leaves its output as it is: memory for `put`."""
    slices = _Slices(shape, axis, dtype)
    with _function(symbol) as builder:
        B.arg("Y", B.buffer(slices.whole_shape, dtype))
        B.evaluate(tir.i32(0))
    return builder.get()


def fill_kernel(shape: Sequence[int], real: float, padded: float, symbol: str) -> tir.Expr:
    """PrimFunc (total, mask): float32 of the given shape, `real` at the first `total` elements."""
    count = math.prod(shape)
    with _function(symbol) as builder:
        total = B.arg("total", B.int64())
        mask = B.arg("Y", B.buffer(tuple(shape), "float32"))
        flat = B.decl_buffer((count,), "float32", data=mask.data)
        with B.serial(_i64(count)) as s:
            B.buffer_store(flat, tirx.Select(s < total, tir.f32(real), tir.f32(padded)), [s])
    return builder.get()


def share_kernel(symbol: str) -> tir.Expr:
    """PrimFunc (total, share): one over the number of real positions."""
    with _function(symbol) as builder:
        total = B.arg("total", B.int64())
        share = B.arg("Y", B.buffer((), "float32"))
        flat = B.decl_buffer((1,), "float32", data=share.data)
        B.buffer_store(flat, tir.f32(1.0) / tirx.Cast("float32", total), [0])
    return builder.get()


def _check_size(total: tir.Expr, most: int | None) -> None:
    """End the call with an error for sizes that cannot run."""
    with B.Assert(total >= 1, "the size of the open dimension is zero"):
        pass
    if most is not None:
        with B.Assert(total <= most, f"the largest size is {most}: compile the model with a larger bucket"):
            pass


def plan_kernel(rows: int, sizes: Sequence[int], steady: int, symbol: str) -> tir.Expr:
    """PrimFunc (table, total, plan): row n of the table says how often each bucket runs for n < rows positions; what is
    longer begins with the bucket number `steady`. plan: (first position, count) of each bucket, the largest first.
    """
    kinds = len(sizes)
    with _function(symbol) as builder:
        table = B.arg("T", B.buffer((rows, kinds), "int32"))
        total = B.arg("total", B.int64())
        plan = B.arg("Y", B.buffer((2 * kinds,), "int64"))
        _check_size(total, None)
        over = tirx.max(total - (rows - 1), _i64(0))
        long = tir.let((over + (sizes[steady] - 1)) // sizes[steady])
        rest = tir.let(total - long * sizes[steady])
        at: tir.Expr = _i64(0)
        for number, bucket in enumerate(reversed(range(kinds))):
            count = tirx.Cast("int64", table[rest, bucket])
            count = tir.let(count + long if bucket == steady else count)
            B.buffer_store(plan, at, [2 * number])
            B.buffer_store(plan, count, [2 * number + 1])
            at = tir.let(at + count * sizes[bucket])
    return builder.get()


def is_kernel(values: Sequence[int], symbol: str) -> tir.Expr:
    """PrimFunc (number, answer): whether it is one of `values`."""
    with _function(symbol) as builder:
        number = B.arg("number", B.int64())
        answer = B.arg("Y", B.buffer((), "bool"))
        flat = B.decl_buffer((1,), "bool", data=answer.data)
        found = tirx.const(False, "bool")
        for value in values:
            found = tirx.Or(found, tirx.EQ(number, _i64(value)))
        B.buffer_store(flat, found, [0])
    return builder.get()


def chooses_kernel(rows: int, bucket: int, symbol: str) -> tir.Expr:
    """PrimFunc (table, total, answer): whether the table has this bucket for `total` < rows positions."""
    with _function(symbol) as builder:
        table = B.arg("T", B.buffer((rows,), "int32"))
        total = B.arg("total", B.int64())
        answer = B.arg("Y", B.buffer((), "bool"))
        flat = B.decl_buffer((1,), "bool", data=answer.data)
        _check_size(total, rows - 1)
        B.buffer_store(flat, tirx.EQ(table[tirx.min(total, _i64(rows - 1))], tir.i32(bucket)), [0])
    return builder.get()
