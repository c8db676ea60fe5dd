"""Sparse matrix times sparse activations (spmv_columns.cu): only the weight columns of non-zero activations are read.

    block: `rows` rows of one token, `threads` threads:
        list the columns k with x[k] != 0
        thread: for column of the list, `threads` apart: for its entries in these rows: own sums[row] += w * x[k]
        warps add the sums of all threads, in fixed order

Requires: products of at most 4 tokens in plain layouts, a workload whose activation density is known. Right for every
input, whatever its density: NaN counts as non-zero. formats/column_slots.py has the format.

Everything that it reads waits for the activations, where cuda.spmv has its weights in registers by then. So it is for
weights that take longer to read than that: of 4096 x 4096 at 95 % (5 MB, a launch of 2 us, of which 0.5 us are none of
the kernel's) it is not expected to gain. The idea is the sparse-sparse product of Hunter, Spracklen and Ahmad ("Two
Sparsities Are Better Than One", 2021), here with a row of sums for each thread in place of atomic additions.
"""

from __future__ import annotations

import math

import msgspec
import numpy as np
from sparsetvm.schedules.base import Packed, Template
from sparsetvm.schedules.cuda.epilogue import bias_array, epilogue_defines
from sparsetvm.schedules.cuda.launch import Launch
from sparsetvm.schedules.cuda.spmv import is_sparse_tokens, spmv_clocks

from sparsetvm.core.config import Config
from sparsetvm.core.target import Target
from sparsetvm.core.workload import FEW_TOKENS, Workload
from sparsetvm.formats.column_slots import ENTRIES, SLOT_BYTES, pack_column_slots
from sparsetvm.space.knobs import Ordered
from sparsetvm.space.space import Space

_LOOK = 8  # columns that a thread looks at in a round
_ACTIVE_BYTES = 8  # of a listed column
_REGISTERS = 64  # of a thread
_THREADS = 2048  # of a multiprocessor
# What is expected, in clocks; not fitted, for nothing has been measured. _FIXED: what cuda.spmv takes without any
# weights (1.1 us of an H200). _LATENCY: of L2, _ROUND: two barriers and what is between them, _ADDED: a slot's sums,
# _FINISHED: of a row of sums and thread. Bytes a clock and multiprocessor from L2, and from memory (of sectors).
_FIXED, _LATENCY, _ROUND, _ADDED, _FINISHED = 2200, 600, 150, 60, 0.02
_L2_BYTES, _MEMORY_BYTES = 25, 9
_SURELY = 0.8  # of what cuda.spmv is expected to take: by how much estimates of nothing measured may be off


class SpmvColumns(Template):
    """Template cuda.spmv_columns."""

    name = "cuda.spmv_columns"
    version = 1

    def matches(self, workload: Workload, target: Target) -> bool:
        known = workload.activation_density is not msgspec.UNSET
        return known and is_sparse_tokens(workload, target, FEW_TOKENS)

    def preferred(self, workload: Workload, target: Target) -> bool:
        expected = self.estimate(workload, self.default(workload, target), target)
        return expected < _SURELY * spmv_clocks(workload, target)

    def space(self, workload: Workload, target: Target) -> Space:
        return Space(self.name, (Ordered("rows", (8, 16, 32, 64)), Ordered("threads", (256, 512))))

    def default(self, workload: Workload, target: Target) -> Config:
        """The config with the smallest estimate."""
        return self.smallest_estimate(workload, target)

    def estimate(self, workload: Workload, config: Config, target: Target) -> float:
        """A chain of latencies for each block, and bytes that blocks read at once."""
        rows, threads = config.int("rows"), config.int("threads")
        density = workload.activation_density
        active = workload.k * (density if isinstance(density, float) else 1.0)
        in_slot = rows * workload.pattern.density  # non-zeros of a block and column
        slots = max(1.0, in_slot / ENTRIES + 0.5)
        longest = math.ceil((in_slot + 2.5 * math.sqrt(in_slot)) / ENTRIES)  # of a warp
        blocks = -(-workload.m // rows) * workload.n
        resident = max(1, min(_THREADS // threads, target.shared // _shared(config)))
        waves = -(-blocks // (target.sms * resident))
        rounds = math.ceil(active / threads)
        listed = _LATENCY + _ROUND * math.ceil(workload.k / (threads * _LOOK))
        chain = listed + _LATENCY * longest + _ADDED * longest * rounds + _FINISHED * rows * threads
        share = max(1.0, blocks / target.sms)
        footprint = -(-workload.m // rows) * workload.k * SLOT_BYTES * slots
        rate = _MEMORY_BYTES if workload.cold or footprint > target.l2 else _L2_BYTES
        traffic = share * (4 * workload.k / _L2_BYTES + active * slots * SLOT_BYTES / rate)
        return _FIXED + max(waves * chain, traffic)

    def pack(
        self, weight: np.ndarray, bias: np.ndarray | None, workload: Workload, config: Config, target: Target
    ) -> Packed:
        packed = pack_column_slots(weight, config.int("rows"))
        return Packed((packed.slots.ravel(), packed.first, bias_array(bias, workload.m)))

    def kernel(self, workload: Workload, config: Config, packed: Packed, target: Target, symbol: str) -> Launch:
        rows, threads = config.int("rows"), config.int("threads")
        defines = (
            *(("SP_ROWS", rows), ("SP_THREADS", threads), ("SP_LOOK", _LOOK)),
            ("SP_RESIDENT", max(1, (64 << 10) // (_REGISTERS * threads))),
            *epilogue_defines(workload.epilogue),
        )
        return Launch(
            "spmv_columns.cu", "spmv_columns", defines, (-(-workload.m // rows), workload.n, 1), threads,
            _shared(config), 1, (workload.m, workload.k), overlaps=True,
        )  # fmt: skip


def _shared(config: Config) -> int:
    """Bytes: a row of sums for each row and thread, the listed columns of a round, counts of the warps."""
    rows, threads = config.int("rows"), config.int("threads")
    return 4 * rows * threads + _ACTIVE_BYTES * _LOOK * threads + 4 * (threads // 32)
