"""Dense matrix times few tokens of sparse activations: only the weight columns of non-zero activations are read.

    for token: list the columns k with x[k] != 0 (vcompressps)
        for block of U vectors of rows: for column of the list: U FMAs

Requires: AVX-512, at most 4 tokens, plain layouts, a dense weight, known activation density. Weights are
packed [rows / (U * 16)][K][U * 16], as x86.dense_gemv has them. For every input right: NaN counts as non-zero.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from sparsetvm.schedules.base import Packed, Template
from sparsetvm.schedules.x86.arguments import initial_sums, layer_args
from sparsetvm.schedules.x86.vector_out import reads_few_tokens, write_vector_output

from sparsetvm.core.config import Config
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload
from sparsetvm.space.knobs import Ordered
from sparsetvm.space.space import Space

_LANES = 16
_WORTH_IT = 0.5  # activation density up to which it beats reading all weights


class GemvColumns(Template):
    """Template x86.gemv_columns."""

    name = "x86.gemv_columns"
    version = 1

    def matches(self, workload: Workload, target: Target) -> bool:
        known = workload.activation_density is not msgspec.UNSET
        return known and workload.pattern.kind == "dense" and reads_few_tokens(workload) and target.isa == "avx512"

    def preferred(self, workload: Workload, target: Target) -> bool:
        return workload.active <= _WORTH_IT

    def space(self, workload: Workload, target: Target) -> Space:
        return Space(self.name, (Ordered("vectors", (1, 2, 4, 8)), Ordered("chains", (1, 2, 4))))

    def default(self, workload: Workload, target: Target) -> Config:
        needed = -(-workload.m // (_LANES * target.threads))
        vectors = max(v for v in (1, 2, 4, 8) if v <= max(1, needed))
        return Config.of(self.name, vectors=vectors, chains=4 // min(vectors, 4))

    def pack(
        self, weight: np.ndarray, bias: np.ndarray | None, workload: Workload, config: Config, target: Target
    ) -> Packed:
        width = config.int("vectors") * _LANES
        rows = -(-workload.m // width) * width
        padded = np.zeros((rows, workload.k), np.float32)
        padded[: workload.m] = weight
        start = np.zeros(rows, np.float32)
        start[: workload.m] = initial_sums(bias, workload.m)
        blocks = padded.reshape(rows // width, width, workload.k).transpose(0, 2, 1)
        return Packed((np.ascontiguousarray(blocks).ravel(), start))

    def kernel(self, workload: Workload, config: Config, packed: Packed, target: Target, symbol: str) -> Any:
        from sparsetvm.schedules.x86 import tir

        with tir.prim_func(symbol) as builder:
            _Kernel(workload, config, packed, target.threads).body()
        return builder.get()


class _Kernel:
    """Builds the TIR; the fields are what all loops share."""

    def __init__(self, workload: Workload, config: Config, packed: Packed, threads: int) -> None:
        self.workload, self.threads = workload, threads
        self.vectors, self.chains = config.int("vectors"), config.int("chains")
        self.width, self.rows = self.vectors * _LANES, packed.arrays[1].size
        self.x, self.r, (self.weights, self.bias), self.y = layer_args(workload, packed)

    def body(self) -> None:
        from sparsetvm.schedules.x86 import tir
        from tvm import tirx
        from tvm.tirx.script import builder as tb

        blocks, tokens = self.rows // self.width, self.workload.n
        per_part = -(-blocks // self.threads)
        sums = tir.scratch(tokens * self.rows)
        with tir.outer(self.threads, self.threads) as part, tb.serial(tokens) as token:
            self.scales = tir.scratch(self.workload.k + _LANES)
            self.columns = tb.alloc_buffer((self.workload.k + _LANES,), "int32", scope="local")
            found = tb.alloc_buffer((1,), "int32", scope="global")
            tb.buffer_store(found, tir.i32(0), [0])
            self._list_activations(token, found)
            last = tirx.min((part + 1) * per_part, blocks)
            with tb.serial(last - part * per_part) as at:
                self._block(part * per_part + at, token, tir.let(found[0]), sums)
        write_vector_output(sums, self.rows, self.r, self.y, self.workload, _LANES)

    def _list_activations(self, token: Any, found: Any) -> None:
        """The non-zero activations of a token and where in a block the weights of their columns begin."""
        from sparsetvm.schedules.x86 import tir
        from tvm import tirx
        from tvm.tirx.script import builder as tb

        k = self.workload.k

        def append(first: Any, real: int) -> None:
            value = tir.let(tir.vload_lanes(self.x, token * k + first, _LANES, 0, real))
            mask = tir.is_non_zero(value, _LANES)
            place = tirx.Ramp(first * self.width, tir.i32(self.width), _LANES)
            tir.vstore(self.scales, tir.compress(value, mask), found[0], _LANES)
            tb.buffer_store(self.columns, tir.compress(place, mask), [tirx.Ramp(found[0], 1, _LANES)])
            tb.buffer_store(found, found[0] + tir.count_lanes(mask), [0])

        with tb.serial(k // _LANES) as i:
            append(i * _LANES, _LANES)
        if k % _LANES:
            append(tir.i32(k // _LANES * _LANES), k % _LANES)

    def _block(self, block: Any, token: Any, count: Any, sums: Any) -> None:
        """The sums of a block of rows, in registers."""
        from sparsetvm.schedules.x86 import tir
        from tvm.tirx.script import builder as tb

        base = tb.Bind(block * self.workload.k * self.width)
        totals = tir.Registers(self.vectors * self.chains, _LANES, fill=0.0)
        for v in range(self.vectors):
            totals[v] = tir.vload(self.bias, block * self.width + v * _LANES, _LANES)

        def add(at: Any, chain: int) -> None:
            scale, place = tir.let(tir.splat(self.scales[at], _LANES)), tb.Bind(base + self.columns[at])
            for v in range(self.vectors):
                weights = tir.vload(self.weights, place + v * _LANES, _LANES)
                i = chain * self.vectors + v
                totals[i] = totals[i] + weights * scale

        with tb.serial(count // self.chains) as turn:
            for chain in range(self.chains):
                add(turn * self.chains + chain, chain)
        with tb.serial(count % self.chains) as rest:
            add(count // self.chains * self.chains + rest, 0)
        for v in range(self.vectors):
            total = totals[v]
            for chain in range(1, self.chains):
                total = total + totals[chain * self.vectors + v]
            tir.vstore(sums, total, token * self.rows + block * self.width + v * _LANES, _LANES)
