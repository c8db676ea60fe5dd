"""Loops over runs of consecutive floats in whole vectors and a masked tail."""

from __future__ import annotations

from collections.abc import Callable

from sparsetvm.schedules.x86 import tir
from tvm.tirx.script import builder as B

# (offset from the start of the run, lanes in use) -> ...
Load = Callable[[tir.Expr, int], tir.Expr]
Body = Callable[[tir.Expr, int], None]
Combine = Callable[[tir.Expr, tir.Expr], tir.Expr]

_UNROLL_LIMIT = 16  # runs of at most this many vectors become straight code


def add(a: tir.Expr, b: tir.Expr) -> tir.Expr:
    """Sum, as a value for `Combine`."""
    return a + b


def each_vector(count: int, lanes: int, body: Body, unroll: int = 4) -> None:
    """Call body(offset, lanes in use) for the vectors of a run of `count` floats, `unroll` of them per iteration."""
    whole, rest = divmod(count, lanes)
    looped = whole // unroll if whole > _UNROLL_LIMIT else 0
    if looped:
        with B.serial(looped) as i:
            for u in range(unroll):
                body((i * unroll + u) * lanes, lanes)
    for i in range(looped * unroll, whole):
        body(tir.i32(i * lanes), lanes)
    if rest:
        body(tir.i32(whole * lanes), rest)


def reduce_run(count: int, lanes: int, load: Load, combine: Combine, identity: float, chains: int = 4) -> tir.Expr:
    """Combine the vectors load(offset, lanes in use) of a run into one vector, in several independent chains.

    The lanes that are not in use must hold `identity`.
    """
    partial = tir.Registers(min(chains, max(1, count // lanes)), lanes, fill=identity)
    position = 0

    def step(offset: tir.Expr, end: int) -> None:
        nonlocal position
        index = position % len(partial)
        partial[index] = combine(partial[index], tir.let(load(offset, end)))
        position += 1

    each_vector(count, lanes, step, unroll=len(partial))
    total = partial[0]
    for index in range(1, len(partial)):
        total = tir.let(combine(total, partial[index]))
    return tir.let(total)


def parallel_run(count: int, lanes: int, threads: int, body: Body) -> None:
    """`each_vector` over a long run, shared among threads in chunks of 4 kB."""
    chunk = 64 * lanes
    if count // chunk:
        with tir.outer(count // chunk, threads) as block:
            start = block * chunk
            each_vector(chunk, lanes, lambda offset, end: body(start + offset, end))
    if count % chunk:
        first = count - count % chunk
        each_vector(count % chunk, lanes, lambda offset, end: body(first + offset, end))
