"""Sparse matrix times sparse activations (spmv_columns.cu): only the weight columns of non-zero activations are read.

    block: `rows` rows of one token, `threads` threads:
        list the columns k with x[k] != 0
        thread: for column of the list, `threads` apart: for its entries in these rows: own sums[row] += w * x[k]
        warps add the sums of all threads, in fixed order

Requires: products of at most 4 tokens in plain layouts, a workload whose activation density is known. Right for every
input, whatever its density: NaN counts as non-zero. formats/column_slots.py has the format.

Everything that it reads waits for the activations, where cuda.spmv has its weights in registers by then. So it is for
weights that take longer to read than that. The idea is the sparse-sparse product of Hunter, Spracklen and Ahmad ("Two
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

_MOST_LOOK = 32  # columns that a thread looks at in a round
_REGISTERS = 96  # of a thread
_THREADS = 2048  # of a multiprocessor
_TOGETHER = 4  # columns that a thread has on their way
# What is expected, in clocks. Of the kernel's first version an H200 took 2.79, 4.24 and 7.77 us for 2048, 4096 and 8192
# squared, one token, 5 % of the weights and 12 % of the activations: what follows says 2.5, 4.1 and 5.7 for it, as it
# was. Of the second version the best of all configs take 2.4, 3.5 and 5.2 us, cuda.spmv 1.3, 1.9 and 4.3.
# _FIXED: launch and X, as of cuda.spmv; _LISTED: barriers of a list, and for a column of a thread; _LATENCY: of L2;
# _ADDED: a slot's sums; _FINISHED: barrier, lanes, last store; _ALONE: of a launch that cannot overlap the one before,
# since shared memory does not hold both. Bytes a clock and multiprocessor from L2, from memory (of sectors), and of
# shared memory.
_FIXED, _LISTED, _LATENCY, _ADDED, _FINISHED, _ALONE = 2380, (150, 10), 700, 70, 300, 1500
_L2_BYTES, _MEMORY_BYTES, _SHARED_BYTES = 25, 9, 128
# Of what cuda.spmv is expected to take: where weights come from L2, configs took up to 2.8 times their estimate.
_SURELY = 0.5


class SpmvColumns(Template):
    """Template cuda.spmv_columns."""

    name = "cuda.spmv_columns"
    version = 2

    def matches(self, workload: Workload, target: Target) -> bool:
        known = workload.activation_density is not msgspec.UNSET
        return known and is_sparse_tokens(workload, target, FEW_TOKENS)

    def preferred(self, workload: Workload, target: Target) -> bool:
        expected = self.estimate(workload, self.default(workload, target), target)
        return expected < _SURELY * spmv_clocks(workload, target)

    def space(self, workload: Workload, target: Target) -> Space:
        return Space(self.name, (Ordered("rows", (8, 16, 32, 64)), Ordered("threads", (128, 256, 512))))

    def default(self, workload: Workload, target: Target) -> Config:
        """The config with the smallest estimate."""
        return self.smallest_estimate(workload, target)

    def estimate(self, workload: Workload, config: Config, target: Target) -> float:
        """A chain of latencies for each block, and bytes that blocks read at once."""
        rows, threads = config.int("rows"), config.int("threads")
        density = workload.activation_density
        active = workload.k * (density if isinstance(density, float) else 1.0)
        in_slot = rows * workload.pattern.density  # non-zeros of a block and column
        together = workload.pattern.block[0] if workload.pattern.kind == "block" else 1
        slots = max(1.0, in_slot / ENTRIES + 0.5)
        longest = math.ceil((in_slot + 2.5 * math.sqrt(in_slot * min(together, rows))) / ENTRIES)  # of a warp
        blocks = -(-workload.m // rows) * workload.n
        shared = _shared(workload, config)
        resident = max(1, min(_THREADS // threads, target.shared // shared))
        waves = -(-blocks // (target.sms * resident))
        rounds = math.ceil(active / threads)  # columns of a thread
        looks = math.ceil(workload.k / (threads * _look(workload, threads)))
        listed = looks * (_LISTED[0] + (looks - 1) / looks * _LATENCY) + _LISTED[1] * workload.k / 128
        read = longest * (_LATENCY * math.ceil(rounds / _TOGETHER) + _ADDED * rounds)
        cleared = 4 * rows * threads / _SHARED_BYTES
        overlaps = 2 * shared <= target.shared
        chain = listed + read + cleared + _FINISHED + (0 if overlaps else cleared + _ALONE)
        share = max(1.0, blocks / target.sms)
        footprint = -(-workload.m // rows) * workload.k * SLOT_BYTES * slots
        rate = _MEMORY_BYTES if workload.cold or footprint > target.l2 else _L2_BYTES
        traffic = share * (4 * workload.k / _L2_BYTES + active * slots * SLOT_BYTES / rate)
        busy = min(share, resident) * (_LISTED[1] * workload.k / 128 + 2 * cleared)  # what blocks cannot do at once
        return _FIXED + max(waves * chain, traffic, busy)

    def pack(
        self, weight: np.ndarray, bias: np.ndarray | None, workload: Workload, config: Config, target: Target
    ) -> Packed:
        packed = pack_column_slots(weight, config.int("rows"))
        return Packed((packed.slots.ravel(), packed.first, bias_array(bias, workload.m)))

    def kernel(self, workload: Workload, config: Config, packed: Packed, target: Target, symbol: str) -> Launch:
        rows, threads = config.int("rows"), config.int("threads")
        defines = (
            *(("SP_ROWS", rows), ("SP_THREADS", threads), ("SP_LOOK", _look(workload, threads))),
            *(("SP_FOURS", int(workload.k % 4 == 0)), ("SP_WIDE", int(_column_bytes(workload) > 2))),
            ("SP_RESIDENT", max(1, (64 << 10) // (_REGISTERS * threads))),
            *epilogue_defines(workload.epilogue),
        )
        return Launch(
            "spmv_columns.cu", "spmv_columns", defines, (-(-workload.m // rows), workload.n, 1), threads,
            _shared(workload, config), 1, (workload.m, workload.k), overlaps=True,
        )  # fmt: skip


def _look(workload: Workload, threads: int) -> int:
    """Columns that a thread looks at in a round: all that there are, if they are not too many."""
    return min(_MOST_LOOK, 4 * -(-workload.k // (4 * threads)))


def _column_bytes(workload: Workload) -> int:
    return 2 if workload.k <= 1 << 16 else 4


def _shared(workload: Workload, config: Config) -> int:
    """Bytes: a row of sums for each row and thread, counts of the warps, the listed columns of a round."""
    rows, threads = config.int("rows"), config.int("threads")
    listed = _column_bytes(workload) * _look(workload, threads) * threads
    return 4 * rows * threads + 4 * (threads // 32) + listed
