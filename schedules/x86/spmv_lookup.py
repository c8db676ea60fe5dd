"""Sparse matrix times few tokens by in-register table lookup.

    for slice of 16 rows (lanes): for step of its walk over blocks of 16 columns:
        for token: load the next block of x into the window -> vpermi2ps -> FMA with 16 weights

Requires: AVX-512, at most 4 tokens, plain layouts. Bound by reading 4.8 bytes per stored value, whatever the number of
tokens: code of the same pattern would be 12 bytes per non-zero and used once. formats/lookup.py describes the walk, and
why it stores little more than the non-zeros.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from sparsetvm.schedules.base import Packed, Template
from sparsetvm.schedules.x86.arguments import layer_args
from sparsetvm.schedules.x86.vector_out import reads_few_tokens, write_lanes

from sparsetvm.core.config import Config
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload
from sparsetvm.formats.lookup import BLOCK, LANES, LookupFormat, pack_lookup
from sparsetvm.space.knobs import Choice, Ordered
from sparsetvm.space.space import Space

_PERMUTE = "llvm.x86.avx512.vpermi2var.ps.512"
_MAX_COLUMNS = BLOCK << 16
# Chains of accumulation per token: a step takes about one cycle per token, an FMA four.
_CHAINS = {1: 3, 2: 2, 3: 2, 4: 1}


class SpmvLookup(Template):
    """Template x86.spmv_lookup."""

    name = "x86.spmv_lookup"
    version = 2

    def matches(self, workload: Workload, target: Target) -> bool:
        sparse = workload.pattern.kind != "dense" and workload.nnz > 0
        return sparse and reads_few_tokens(workload) and target.isa == "avx512" and workload.k <= _MAX_COLUMNS

    def space(self, workload: Workload, target: Target) -> Space:
        return Space(self.name, (Ordered("window", (2, 4)), Ordered("fresh", (1, 2)), Choice("sort_rows", (0, 1))))

    def default(self, workload: Workload, target: Target) -> Config:
        density, mean = workload.pattern.density, workload.nnz / workload.m
        # A wider window costs instructions per token and saves weights that all tokens share.
        window = 4 if workload.n == 1 or density < 0.07 else 2
        # Rows of random patterns are hardly longer than this; for longer ones sorting pays for the scatter of y.
        uneven = workload.pattern.row_imbalance > 1 + 4 / math.sqrt(max(mean, 1.0))
        return Config.of(self.name, window=window, fresh=2 if density < 0.04 else 1, sort_rows=int(uneven))

    def pack(
        self, weight: np.ndarray, bias: np.ndarray | None, workload: Workload, config: Config, target: Target
    ) -> Packed:
        window, fresh, sort_rows = config.int("window"), config.int("fresh"), bool(config.int("sort_rows"))
        packed = pack_lookup(weight, target.threads, window=window, fresh=fresh, sort_rows=sort_rows)
        start = np.zeros(packed.order.size, np.float32)
        if bias is not None:
            start[:] = bias[packed.order]
        arrays = (packed.values, packed.ids, packed.walk, packed.first, packed.bounds, packed.order, start)
        return Packed(arrays, {"format": packed})

    def kernel(self, workload: Workload, config: Config, packed: Packed, target: Target, symbol: str) -> Any:
        from sparsetvm.schedules.x86 import tir

        with tir.prim_func(symbol) as ib:
            _Kernel(workload, config, packed, target.threads).body()
        return ib.get()


class _Kernel:
    """Builds the TIR; the fields are what all loops share."""

    def __init__(self, workload: Workload, config: Config, packed: Packed, threads: int) -> None:
        self.workload, self.threads = workload, threads
        self.format: LookupFormat = packed.meta["format"]
        self.scattered = bool(config.int("sort_rows"))
        self.tokens = range(workload.n)
        self.x_stride = -(-workload.k // BLOCK) * BLOCK
        self.x, self.r, arrays, self.y = layer_args(workload, packed)
        self.values, self.ids, self.walk, self.first, self.bounds, self.order, self.bias = arrays

    def body(self) -> None:
        from sparsetvm.schedules.x86 import tir
        from tvm.tirx.script import builder as tb

        if self.workload.k % BLOCK:
            self.x = self._padded_input()
        with tir.outer(self.threads, self.threads) as part:
            begin = tb.Bind(self.bounds[part])
            with tb.serial(self.bounds[part + 1] - begin) as i:
                self._slice(tb.Bind(begin + i))

    def _padded_input(self) -> Any:
        """A copy of x in which the last block of a token is whole."""
        from sparsetvm.schedules.x86 import tir
        from tvm.tirx.script import builder as tb

        k, stride = self.workload.k, self.x_stride
        padded = tir.scratch(len(self.tokens) * stride)
        for token in self.tokens:
            with tb.serial(k) as i:
                tb.buffer_store(padded, self.x[token * k + i], [token * stride + i])
            with tb.serial(stride - k) as i:
                tb.buffer_store(padded, tir.f32(0.0), [token * stride + k + i])
        return padded

    def _slice(self, at: Any) -> None:
        """Sums, residual and activation of 16 rows."""
        from sparsetvm.schedules.x86 import tir
        from tvm.tirx.script import builder as tb

        chains = _CHAINS[len(self.tokens)]
        sums = [tir.Registers(chains, LANES, fill=0.0) for _ in self.tokens]
        kept = [tir.Registers(self.format.window - self.format.fresh, LANES) for _ in self.tokens]
        for token in self.tokens:
            sums[token][0] = tir.vload(self.bias, at * LANES, LANES)
            for i in range(len(kept[token])):
                kept[token][i] = tir.vload(self.x, token * self.x_stride, LANES)
        begin = tb.Bind(self.first[at])
        with tb.serial(self.first[at + 1] - begin) as q:
            self._group(tb.Bind(begin + q), sums, kept)
        for token in self.tokens:
            total = sums[token][0]
            for chain in range(1, chains):
                total = total + sums[token][chain]
            self._finish(at, token, tir.let(total))

    def _group(self, group: Any, sums: list[Any], kept: list[Any]) -> None:
        """The steps of one group; `kept` holds the blocks of the windows that the next step does not replace."""
        from sparsetvm.schedules.x86 import tir
        from tvm import tirx

        fmt = self.format
        ids = tir.let(self.ids[tirx.Ramp(group * LANES, 1, LANES)])
        words = [tir.let(self.walk[group * fmt.words + i]) for i in range(fmt.words)]
        windows = [[tir.let(blocks[i]) for i in range(len(blocks))] for blocks in kept]
        for step in range(fmt.group):
            for load in range(step * fmt.fresh, (step + 1) * fmt.fresh):
                block = self._field(words, load)
                for token in self.tokens:
                    at = block * tirx.const(BLOCK, "int64") + tirx.const(token * self.x_stride, "int64")
                    windows[token].append(tir.let(self.x[tirx.Ramp(at, tirx.const(1, "int64"), LANES)]))
            index = self._index(ids, step)
            weights = tir.let(tir.vload(self.values, (group * fmt.group + step) * LANES, LANES))
            for token in self.tokens:
                chain = step % len(sums[token])
                sums[token][chain] = sums[token][chain] + weights * _look_up(index, windows[token])
            windows = [window[fmt.fresh :] for window in windows]
        for token in self.tokens:
            for i, kept_block in enumerate(windows[token]):
                kept[token][i] = kept_block

    def _field(self, words: list[Any], load: int) -> Any:
        """The block that a group loads as its `load`-th."""
        from tvm import tirx

        word, field = divmod(load, self.format.per_word)
        bits = self.format.block_bits
        shifted = tirx.shift_right(words[word], tirx.const(field * bits, "int64"))
        return tirx.bitwise_and(shifted, tirx.const((1 << bits) - 1, "int64"))

    def _index(self, ids: Any, step: int) -> Any:
        """Where in the window each lane looks, int32x16."""
        from sparsetvm.schedules.x86 import tir
        from tvm import tirx

        def by(bits: int) -> Any:
            return tirx.Broadcast(tirx.const(bits, "uint32"), LANES)

        shift = step * self.format.id_bits
        if self.format.window == 2:
            return tir.let(tir.bits(tirx.shift_right(ids, by(shift)), "int32x16"))
        # The lowest bit of the field, which chooses the newer two blocks, rotates into the sign.
        rotated = tirx.bitwise_or(tirx.shift_right(ids, by(shift + 1)), tirx.shift_left(ids, by(31 - shift)))
        return tir.let(tir.bits(rotated, "int32x16"))

    def _finish(self, at: Any, token: int, total: Any) -> None:
        """Residual, activation and store of 16 sums."""
        from sparsetvm.schedules.x86 import tir
        from tvm import tirx

        m = self.workload.m
        row = tirx.Ramp(at * LANES, 1, LANES)
        if self.scattered:
            where, mask = self.order[row] + tirx.Broadcast(tir.i32(token * m), LANES), None
        else:
            where = tirx.Ramp(at * LANES + token * m, 1, LANES)
            mask = row < tirx.Broadcast(tir.i32(m), LANES) if m % LANES else None
        write_lanes(total, self.r, self.y, where, mask, self.workload.epilogue)


def _look_up(index: Any, window: list[Any]) -> Any:
    """The value of x for each lane."""
    from sparsetvm.schedules.x86 import tir
    from tvm import tirx

    def permuted(low: Any, high: Any) -> Any:
        return tirx.call_llvm_pure_intrin("float32x16", _PERMUTE, low, index, high)

    if len(window) == 2:
        return permuted(*window)
    newer = index < tirx.Broadcast(tir.i32(0), LANES)
    return tirx.Select(newer, permuted(*window[2:]), permuted(*window[:2]))
