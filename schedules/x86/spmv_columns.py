"""Sparse matrix times sparse activations: only the weight columns of non-zero activations are read.

    for token: list the blocks of the columns k with x[k] != 0
        for block of the list: for entry: sums[row] += w * x[k], or 4, 8, 16 rows at once

Requires: AVX-512, at most 4 tokens, plain layouts, a workload whose activation density is known. Bound by the stores of
sums, one per entry and clock; the columns to come are prefetched. formats/columns.py has the format and
formats/active_columns.py the list. For every input right, whatever its density: NaN counts as non-zero.

The idea is the sparse-sparse product of Hunter, Spracklen and Ahmad ("Two Sparsities Are Better Than One", 2021).
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from sparsetvm.schedules.base import Packed, Template
from sparsetvm.schedules.x86.arguments import layer_args
from sparsetvm.schedules.x86.vector_out import reads_few_tokens, write_lanes

from sparsetvm.core.config import Config
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload
from sparsetvm.formats.active_columns import AHEAD, active_columns_function
from sparsetvm.formats.columns import IDS_PER_WORD, LANES, MAX_ROWS, SPARE, ColumnFormat, pack_columns
from sparsetvm.space.knobs import Ordered
from sparsetvm.space.space import Space

_HEIGHTS = (1, 4, 8, 16)
_AHEAD = 12  # blocks
# Activation density below which it beats the lookup kernel: on random patterns, and where an entry has several rows.
_WORTH_IT, _WORTH_IT_IN_BLOCKS = 0.2, 0.5


class SpmvColumns(Template):
    """Template x86.spmv_columns."""

    name = "x86.spmv_columns"
    version = 1

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
        return Space(self.name, (Ordered("height", _heights(workload)), Ordered("entries", (4, 8, 16))))

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
        from tvm import tirx
        from tvm.tirx.script import builder as tb

        function = active_columns_function(symbol, workload.k)
        with tir.prim_func(symbol) as ib:
            kernel = _Kernel(workload, packed, target.threads, symbol)
            with tb.attr(tirx.const(0, "int32"), "pragma_import_llvm", function):
                kernel.body()
        return ib.get()


class _Kernel:
    """Builds the TIR; the fields are what all loops share."""

    def __init__(self, workload: Workload, packed: Packed, threads: int, symbol: str) -> None:
        self.workload, self.threads, self.symbol = workload, threads, symbol
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
        """List the blocks of the active columns, then add one after the other."""
        from tvm import tirx
        from tvm.tirx.script import builder as tb

        columns = -(-self.workload.k // LANES) * LANES + LANES
        listed = -(-self.format.most_blocks // LANES) * LANES + AHEAD
        # One allocation for all lists: TVM shrinks a buffer whose accesses it knows to what those need.
        lists = tb.alloc_buffer((3 * columns + 2 * listed,), "int32", scope="local")
        blocks, scales = 3 * columns, 3 * columns + listed
        starts = (0, columns, 2 * columns, blocks, scales)
        x, first = self.x[token * self.workload.k], self.first[part * self.format.first_stride]
        addresses = [tirx.address_of(at) for at in (x, first, *(lists[start] for start in starts))]
        count = tb.Bind(tirx.call_extern("int32", f"{self.symbol}_active", *addresses))
        with tb.serial(count) as at:
            block, coming = (tirx.Cast("int64", lists[blocks + at + ahead]) for ahead in (0, _AHEAD))
            scale = tirx.reinterpret("float32", lists[scales + at])
            self._prefetch(tb.Bind(coming))
            self._add_block(tb.Bind(block), tb.Bind(scale), sums)

    def _prefetch(self, block: Any) -> None:
        from sparsetvm.schedules.x86 import tir

        floats = self.format.size * self.format.height
        for line in range(0, floats, LANES):
            tir.prefetch(self.values, block * floats + line, level=1)
        tir.prefetch(self.ids, block * (self.format.size // IDS_PER_WORD), level=1)

    def _add_block(self, block: Any, scale: Any, sums: Any) -> None:
        """sums += weights of one block * scale. The ids of four entries are read as one word."""
        from sparsetvm.schedules.x86 import tir
        from tvm import tirx
        from tvm.tirx.script import builder as tb

        words, height = self.format.size // IDS_PER_WORD, self.format.height
        for word in range(words):
            ids = tb.Bind(self.ids[block * words + word])
            at = (block * words + word) * (IDS_PER_WORD * height)
            rows = [tirx.bitwise_and(tirx.shift_right(ids, _i64(16 * i)), _i64(0xFFFF)) for i in range(IDS_PER_WORD)]
            if height == 1:
                # The fence keeps LLVM from multiplying one by one: the loop is bound by loads and stores. Not bound to
                # a cell: TVM would merge that with those of scalars. It is computed once all the same.
                product = tir.vload(self.values, at, IDS_PER_WORD) * tir.splat(scale, IDS_PER_WORD)
                terms = tirx.call_llvm_pure_intrin("float32x4", "llvm.arithmetic.fence", product)
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


def _i64(value: int) -> Any:
    from tvm import tirx

    return tirx.const(value, "int64")


def _heights(workload: Workload) -> tuple[int, ...]:
    """Rows that one entry may have: 1, and what divides the height of blocks, so that no zero is multiplied."""
    height = workload.pattern.block[0] if workload.pattern.kind == "block" else 1
    return tuple(rows for rows in _HEIGHTS if height % rows == 0)
