"""Sparse matrix times sparse activations: only the weight columns of non-zero activations are read.

    for token: list the columns k with x[k] != 0 (vcompressps)
        for column of the list: for entry: sums[row] += w * x[k], or 4, 8, 16 rows at once

Requires: AVX-512, at most 4 tokens, plain layouts, a workload whose activation density is known. Bound by the stores of
sums, one per entry and clock; the column to come is prefetched. formats/columns.py has the format. For every input
right, whatever its density: NaN counts as non-zero.

The idea is the sparse-sparse product of Hunter, Spracklen and Ahmad ("Two Sparsities Are Better Than One", 2021).
"""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
from sparsetvm.schedules.base import Packed, Template
from sparsetvm.schedules.x86.arguments import layer_args
from sparsetvm.schedules.x86.vector_out import reads_few_tokens, write_lanes

from sparsetvm.core.config import Config
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload
from sparsetvm.formats.columns import IDS_PER_WORD, LANES, MAX_ROWS, SPARE, ColumnFormat, pack_columns
from sparsetvm.space.knobs import Ordered
from sparsetvm.space.space import Space

_HEIGHTS = (1, 4, 8, 16)
_PREFETCHED = 16 * LANES  # floats of a column, at most
_GROUP = 4  # entries whose products are computed at once, at most
# Activation density below which it beats the lookup kernel: on random patterns, and where an entry has several rows.
_WORTH_IT, _WORTH_IT_IN_BLOCKS = 0.2, 0.5


class SpmvColumns(Template):
    """Template x86.spmv_columns."""

    name = "x86.spmv_columns"
    version = 2

    def matches(self, workload: Workload, target: Target) -> bool:
        known = workload.activation_density is not msgspec.UNSET
        sparse = workload.pattern.kind != "dense" and workload.nnz > 0
        small = workload.m <= MAX_ROWS
        return known and sparse and small and reads_few_tokens(workload) and target.isa == "avx512"

    def preferred(self, workload: Workload, target: Target) -> bool:
        density = workload.activation_density
        limit = _WORTH_IT if _heights(workload) == (1,) else _WORTH_IT_IN_BLOCKS
        return isinstance(density, float) and density <= limit

    def space(self, workload: Workload, target: Target) -> Space:
        return Space(self.name, (Ordered("height", _heights(workload)), Ordered("entries", (2, 4, 8, 16))))

    def default(self, workload: Workload, target: Target) -> Config:
        height = _heights(workload)[-1]
        per_column = workload.nnz / workload.k / height
        return Config.of(self.name, height=height, entries=8 if per_column >= 16 else 4)

    def pack(
        self, weight: np.ndarray, bias: np.ndarray | None, workload: Workload, config: Config, target: Target
    ) -> Packed:
        packed = pack_columns(weight, target.threads, height=config.int("height"), size=config.int("entries"))
        start = np.zeros(packed.bounds[-1] * LANES, np.float32)
        if bias is not None:
            start[: workload.m] = bias
        return Packed((packed.values, packed.ids, packed.first, packed.bounds, start), {"format": packed})

    def kernel(self, workload: Workload, config: Config, packed: Packed, target: Target, symbol: str) -> Any:
        from sparsetvm.schedules.x86 import tir

        with tir.prim_func(symbol) as builder:
            _Kernel(workload, packed, target.threads).body()
        return builder.get()


class _Kernel:
    """Builds the TIR; the fields are what all loops share."""

    def __init__(self, workload: Workload, packed: Packed, threads: int) -> None:
        self.workload, self.threads = workload, threads
        self.format: ColumnFormat = packed.meta["format"]
        self.x, self.r, arrays, self.y = layer_args(workload, packed)
        self.values, self.ids, self.first, self.bounds, self.bias = arrays

    def body(self) -> None:
        from sparsetvm.schedules.x86 import tir
        from tvm.tirx.script import builder as tb

        with tir.outer(self.threads, self.threads) as part:
            base = tb.Bind(self.bounds[part])
            slices = tb.Bind(self.bounds[part + 1] - base)
            # Padding is added to rows behind those of the part.
            sums = tir.scratch(self.format.most_slices * LANES + SPARE * self.format.height)
            with tb.serial(self.workload.n) as token:
                with tb.serial(slices) as at:
                    tir.vstore(sums, tir.vload(self.bias, (base + at) * LANES, LANES), at * LANES, LANES)
                self._add_columns(part, token, sums)
                with tb.serial(slices) as at:
                    self._finish(base + at, token, tir.let(tir.vload(sums, at * LANES, LANES)))

    def _add_columns(self, part: Any, token: Any, sums: Any) -> None:
        """List the active columns, then add the blocks of one after the other.

        A list of all their blocks, without a loop for each column, mispredicts no end of a column, but what it takes to
        write and read costs more: 2048 x 2048 with 5 % of the weights and 12 % of the activations took 11.9 us instead
        of 9.2 (Zen 4).
        """
        from sparsetvm.schedules.x86 import tir
        from tvm.tirx.script import builder as tb

        k, size = self.workload.k, self.workload.k + 2 * LANES
        scales = tir.scratch(size)
        begins, ends = (tb.alloc_buffer((size,), "int32", scope="local") for _ in range(2))
        found = tb.alloc_buffer((1,), "int32", scope="global")
        tb.buffer_store(found, tir.i32(0), [0])
        first = tb.Bind(part * self.format.first_stride)

        def append(column: Any, real: int) -> None:
            value = tir.let(tir.vload_lanes(self.x, token * k + column, LANES, 0, real))
            mask = tir.is_non_zero(value, LANES)
            tir.vstore(scales, tir.compress(value, mask), found[0], LANES)
            for target, shift in ((begins, 0), (ends, 1)):
                bound = tir.vload(self.first, first + column + shift, LANES)
                tir.vstore(target, tir.compress(bound, mask), found[0], LANES)
            tb.buffer_store(found, found[0] + tir.count_lanes(mask), [0])

        with tb.serial(k // LANES) as i:
            append(i * LANES, LANES)
        if k % LANES:
            append(tir.i32(k // LANES * LANES), k % LANES)
        tb.buffer_store(begins, tir.i32(0), [found[0]])
        with tb.serial(found[0]) as at:
            begin, coming, scale = tb.Bind(begins[at]), tb.Bind(begins[at + 1]), tb.Bind(scales[at])
            self._prefetch(coming)
            with tb.serial(ends[at] - begin) as block:
                self._add_block(begin + block, scale, sums)

    def _prefetch(self, block: Any) -> None:
        """Bring a column of mean length, that begins with `block`, to L1: all lines at once.

        A prefetch for each line as the column before is added would take a third of its loads.
        """
        from sparsetvm.schedules.x86 import tir

        blocks = self.format.mean_blocks
        floats, words = self.format.size * self.format.height, self.format.size // IDS_PER_WORD
        for line in range(0, min(math.ceil(blocks * floats), _PREFETCHED), LANES):
            tir.prefetch(self.values, block * floats + line, level=1)
        for line in range(0, min(math.ceil(blocks * words), _PREFETCHED), LANES):
            tir.prefetch(self.ids, block * words + line, level=1)

    def _add_block(self, block: Any, scale: Any, sums: Any) -> None:
        """sums += weights of one block * scale. The ids of two entries are read as one word.

        A core that stores one float per clock has six instructions for it: with words of four ids it takes two to get
        at each, and with none a third memory access.
        """
        from sparsetvm.schedules.x86 import tir
        from tvm import tirx
        from tvm.tirx.script import builder as tb

        size, height = self.format.size, self.format.height
        group = min(size, _GROUP)
        for first in range(0, size, group):
            rows = []
            for entry in range(first, first + group, IDS_PER_WORD):
                ids = tb.Bind(self.ids[block * (size // IDS_PER_WORD) + entry // IDS_PER_WORD])
                rows += [tirx.bitwise_and(ids, tir.i32(0xFFFF)), _upper_half(ids)]
            at = (block * size + first) * height
            if height == 1:
                # The fence keeps LLVM from multiplying one by one: the loop is bound by loads and stores. Not bound to
                # a cell: TVM would merge that with those of scalars. It is computed once all the same.
                product = tir.vload(self.values, at, group) * tir.splat(scale, group)
                terms = tirx.call_llvm_pure_intrin(f"float32x{group}", "llvm.arithmetic.fence", product)
                for i, entry in enumerate(rows):
                    row = tb.Bind(entry)
                    tb.buffer_store(sums, sums[row] + tirx.Shuffle([terms], [i]), [row])
                continue
            for i, entry in enumerate(rows):
                row = tb.Bind(entry * height)
                weights = tir.vload(self.values, at + i * height, height)
                tir.vstore(sums, tir.vload(sums, row, height) + weights * tir.splat(scale, height), row, height)

    def _finish(self, at: Any, token: Any, total: Any) -> None:
        """Residual, activation and store of 16 sums."""
        from sparsetvm.schedules.x86 import tir
        from tvm import tirx

        m = self.workload.m
        where = tirx.Ramp(at * LANES + token * m, 1, LANES)
        mask = tirx.Ramp(at * LANES, 1, LANES) < tirx.Broadcast(tir.i32(m), LANES) if m % LANES else None
        write_lanes(total, self.r, self.y, where, mask, self.workload.epilogue)


def _upper_half(word: Any) -> Any:
    """The upper 16 bits of an int32, as a number without sign."""
    from tvm import tirx

    return tirx.Cast("int32", tirx.shift_right(tirx.reinterpret("uint32", word), tirx.const(16, "uint32")))


def _heights(workload: Workload) -> tuple[int, ...]:
    """Rows that one entry may have: 1, and what divides the height of blocks, so that no zero is multiplied."""
    height = workload.pattern.block[0] if workload.pattern.kind == "block" else 1
    return tuple(rows for rows in _HEIGHTS if height % rows == 0)
