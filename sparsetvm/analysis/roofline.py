"""What a good sparse kernel can gain over a good dense one: a model of one core, in clock cycles.

(GPUs have a model of their own, gpu_roofline.py.)

The model and its constants come from measurements of the kernels on Zen 4, Zen 5 and Emerald Rapids:
- dense: one vector FMA per `lanes` products; for few columns the weights stream from the cache that holds them; with
  AVX-512 3x3 convolution does half of its products (x86.dense_winograd), with twice the weights;
- pattern in code: R output rows live in registers, so per k an X vector is loaded once if any of the R rows needs it,
  and each non-zero is an FMA with a broadcast load; K is blocked for L1, which costs R loads and R stores per block;
  meanwhile code and weights (16 bytes per non-zero) come from the outer caches, prefetched, once per call;
- pattern in data: 60 % of the FMA rate, 8 bytes per non-zero; 80 % and 5 bytes for blocks of 4 and more rows; the
  faster of the two counts;
- N = 1: register look-up over padded index lists (5 bytes per padded non-zero) with AVX-512, plain CSR without; where X
  is known to hold many zeros, a store per entry of the columns that are left;
- both read and write their activations once, and a call costs something.
Threads divide both times alike and are left out. Of tuned layers with 16 or more columns it is 15 % off in the mean on
a Zen 5 and 23 % on a Xeon; products of one token may be off by a factor of 3. Tuning decides, not this.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import msgspec

from sparsetvm.analysis.cpu_core import core_of
from sparsetvm.analysis.gpu_roofline import dense_us, gpu_roof, sparse_us, sparse_us_parts
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload

WORTH_IT = 1.1  # a layer is expected to become sparse from this speed-up on

_L3 = 32 << 20
_CACHE_RATE, _MEMORY_RATE = 24.0, 7.0  # bytes per cycle that one core streams
_DENSE_EFFICIENCY = 0.92
_HALVED_TIME = 0.56  # of half of the products, and of what it takes to get there
LEAST_HALVED_K = 144  # for shorter rows of W that costs more than it saves
_CODE_BYTES = 16.0  # code and weight of one non-zero
_DATA_EFFICIENCY = 0.60
_DATA_BYTES = 8.0
_STRIP_ROWS, _STRIP_EFFICIENCY, _STRIP_BYTES = 4, 0.80, 5.0
_COLUMN_CYCLES = 1.7  # per entry of the column of an activation that is not zero: a store, and what else is in its way
_CSR_CYCLES = 1.15  # per non-zero of an N = 1 product without register look-up
_CALL_CYCLES = 500.0
_FEW_COLUMNS = 4  # fewer: look-up or CSR per column, not vectors over columns


def stream_cycles(nbytes: float) -> float:
    """Cycles to read `nbytes` once from the cache that would hold them, or from memory."""
    return nbytes / (_CACHE_RATE if nbytes <= _L3 else _MEMORY_RATE)


def dense_cycles(workload: Workload, target: Target) -> float:
    """Cycles of one core for a good dense kernel."""
    core, n = core_of(target), workload.n
    rows = min(8, _rows_per_group(workload))
    vector_fmas = workload.m * workload.k * n / target.lanes
    compute = vector_fmas * max(1.0 / core.fma, 1.0 / (rows * core.loads)) / _DENSE_EFFICIENCY
    weights = stream_cycles(4.0 * workload.m * workload.k)
    share = _halved_share(workload, target)
    if share < 1.0:
        compute, weights = share * compute, 2.0 * weights
    return max(compute, weights) + _CALL_CYCLES + stream_cycles(workload.activation_bytes)


def may_halve_products(workload: Workload, target: Target) -> bool:
    """True for a convolution that x86.dense_winograd is made for."""
    conv = workload.conv
    if conv is None or target.isa != "avx512":
        return False
    return (conv.groups, conv.kernel[0], conv.stride, conv.dilation) == (1, 3, (1, 1), (1, 1))


def _halved_share(workload: Workload, target: Target) -> float:
    """Time of minimal filtering, of that of all products: rows of outputs come in fours. 1 where it does not apply."""
    conv = workload.conv
    if conv is None or not may_halve_products(workload, target) or workload.k < LEAST_HALVED_K:
        return 1.0
    return min(1.0, _HALVED_TIME * 4 * -(-conv.out_height // 4) / conv.out_height)


def sparse_cycles(workload: Workload, target: Target) -> float:
    """Cycles of one core for a good sparse kernel of the workload's pattern."""
    return sum(sparse_parts(workload, target).values())


def sparse_parts(workload: Workload, target: Target) -> dict[str, float]:
    """What a good sparse kernel spends its time on, in the units of `dense_time`; the keys are those of limits.py."""
    if target.kind == "cuda":
        return sparse_us_parts(workload, target)
    if workload.pattern.kind in ("rows", "columns"):
        return {"arithmetic": _density(workload) * dense_cycles(workload, target)}
    if workload.n < _FEW_COLUMNS:
        parts = {"weights": workload.n * _spmv_cycles(workload, target)}
    else:
        ways = _code_parts(workload, target), _data_parts(workload, target)
        parts = min(ways, key=lambda way: sum(way.values()))
    return {**parts, "call": _CALL_CYCLES, "activations": stream_cycles(workload.activation_bytes)}


def _density(workload: Workload) -> float:
    return max(workload.pattern.density, 1.0 / (workload.m * workload.k))


def _rows_per_group(workload: Workload) -> int:
    """Output rows that read the same input."""
    return max(1, workload.m // (workload.conv.groups if workload.conv else 1))


def _spmv_cycles(workload: Workload, target: Target) -> float:
    """One product with a vector. Lists are padded where windows do not fill: 1.1, 1.16, 1.24, 1.4 times at 80-98 %."""
    density = _density(workload)
    nnz = density * workload.m * workload.k
    if workload.pattern.kind == "dense":
        return stream_cycles(4.0 * workload.active * workload.m * workload.k)
    if target.isa == "avx2":
        return max(_CSR_CYCLES * nnz, stream_cycles(6.0 * nnz))
    padding = 1.0 + 0.04 * math.pow(density, -0.6)
    lookup = stream_cycles(5.0 * padding * nnz)
    height = workload.pattern.block[0] if workload.pattern.kind == "block" else 1
    # Known to hold many zeros, X is read by columns: entries of up to 16 rows.
    columns = workload.active * nnz * _COLUMN_CYCLES / math.gcd(height, 16)
    return lookup if workload.active == 1.0 else min(lookup, columns)


def _code_parts(workload: Workload, target: Target) -> dict[str, float]:
    """Pattern in code."""
    core, density = core_of(target), _density(workload)
    rows = min(core.rows, _rows_per_group(workload))
    tall = workload.pattern.block[0] if workload.pattern.kind == "block" else 1
    fmas = rows * density
    shared = 1.0 - math.pow(1.0 - density, max(1.0, rows / tall))  # chance that any row of the group needs this x
    arithmetic, loads = fmas / core.fma, shared / core.loads + fmas / core.broadcasts
    k_block = min(workload.k, target.l1 * 3 // 4 // (4 * target.lanes))
    spills = rows * (2 * -(-workload.k // k_block) - 1) / core.loads
    turns = -(-workload.n // target.lanes) * (workload.m / rows) / core.efficiency
    parts = {
        "arithmetic" if arithmetic >= loads else "loads": turns * workload.k * max(arithmetic, loads),
        "partial sums": turns * spills,
    }
    code = _CODE_BYTES * density * workload.m * workload.k / core.code_bytes
    return parts if sum(parts.values()) >= code else {"code": code}


def _data_parts(workload: Workload, target: Target) -> dict[str, float]:
    """Pattern in data."""
    nnz = _density(workload) * workload.m * workload.k
    tiles = -(-workload.n // target.lanes)
    strips = workload.pattern.kind == "block" and workload.pattern.block[0] >= _STRIP_ROWS
    efficiency, nbytes = (_STRIP_EFFICIENCY, _STRIP_BYTES) if strips else (_DATA_EFFICIENCY, _DATA_BYTES)
    arithmetic = tiles * nnz / (core_of(target).fma * efficiency)
    return {"arithmetic": arithmetic, "weights": stream_cycles(nbytes * nnz)}


def dense_time(workload: Workload, target: Target) -> float:
    """Time of a good dense kernel: cycles of one core, microseconds of a GPU."""
    return dense_us(workload, target) if target.kind == "cuda" else dense_cycles(workload, target)


def best_time(workload: Workload, target: Target) -> float:
    """Time of what the layer would run on, dense or sparse, in the units of `dense_time`."""
    dense, gain = dense_time(workload, target), expected_speedup(workload, target)
    return dense / gain if workload.pattern.kind != "dense" and gain >= WORTH_IT else dense


@dataclass(frozen=True)
class Roof:
    """What a device can do at most: GFLOP/s of its FMA units, and GB/s from the caches that hold a layer (`source`)."""

    gflops: float
    gbytes: float
    source: str


def roof(target: Target, mhz: float | None) -> Roof | None:
    """The roof over all threads of the target; mhz: clock of a core, for a CPU. None when that is not known."""
    if target.kind == "cuda":
        return Roof(*gpu_roof(target), "L2")
    if not mhz:
        return None
    ghz = mhz / 1e3 * target.threads
    return Roof(2 * core_of(target).fma * target.lanes * ghz, _CACHE_RATE * ghz, "the outer caches")


def expected_speedup(workload: Workload, target: Target) -> float:
    """Dense time / sparse time of the model; below 1 where a sparse kernel would be slower."""
    if target.kind == "cuda":
        return dense_us(workload, target) / sparse_us(workload, target)
    return dense_cycles(workload, target) / sparse_cycles(workload, target)


def break_even_sparsity(workload: Workload, target: Target) -> float:
    """Share of zeros in [0, 1] from which a pattern of this kind is worth it; 1.0 when it never is."""
    kind = workload.pattern.kind
    kind = "unstructured" if kind == "dense" else kind

    def gain(sparsity: float) -> float:
        pattern = msgspec.structs.replace(workload.pattern, kind=kind, density=1.0 - sparsity)
        return expected_speedup(msgspec.structs.replace(workload, pattern=pattern), target)

    low, high = 0.0, 1.0
    if gain(high) < WORTH_IT:
        return 1.0
    if gain(low) >= WORTH_IT:
        return 0.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (low, middle) if gain(middle) >= WORTH_IT else (middle, high)
    return high
