"""What a good sparse kernel can gain over a good dense one on a GPU: a model in microseconds.

From measurements of prototypes on an H200 (132 multiprocessors, 1.98 GHz), weights in L2:
- a kernel takes at least 2 us;
- dense: 76 % of the FMA peak of the multiprocessors that have work, or the weights through L2; four times that rate
  where TF32, float16 or bfloat16 is allowed (an estimate from data sheets, nothing was measured);
- sparse, few tokens: 6 bytes per non-zero through L2;
- sparse, more tokens: each non-zero reads its row of X from shared memory, 128 bytes a clock and multiprocessor, which
  allows 25 % of the FMA peak; entries, padding and uneven rows leave 60 % of that.
Good to about 30 % where it was compared; tuning decides, not this.
"""

from __future__ import annotations

from sparsetvm.core.layout import Plain
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload

_CLOCK = 1.98e3  # per us
_LANES = 128  # float32 FMAs per clock and multiprocessor
_LAUNCH_US = 2.0
_L2_RATE = 3.0e6  # bytes per us
_DENSE_EFFICIENCY = 0.76
_TENSOR_CORE_SPEED = 2.0
_SHARED_SHARE = 0.25
_SPARSE_EFFICIENCY = 0.60
_DENSE_TILE = 128 * 64  # outputs of one block of a good dense kernel
_ENTRY_BYTES, _VECTOR_ENTRY_BYTES = 8.0, 6.0


def dense_us(workload: Workload, target: Target) -> float:
    """Time of a good dense kernel."""
    weights = 4.0 * workload.m * workload.k / _L2_RATE
    if isinstance(workload.layout_in, Plain):
        return _LAUNCH_US + weights
    fmas = float(workload.m) * workload.k * workload.n
    blocks = workload.m * workload.n / _DENSE_TILE
    # With few blocks K is split, at half of the efficiency.
    busy = target.sms * min(1.0, max(0.5, blocks / target.sms))
    rounds = workload.tf32 or workload.fp16 or workload.bf16 is True
    rate = _CLOCK * _LANES * busy * _DENSE_EFFICIENCY * (_TENSOR_CORE_SPEED if rounds else 1.0)
    return _LAUNCH_US + max(fmas / rate, weights, workload.activation_bytes / _L2_RATE)


def sparse_us(workload: Workload, target: Target) -> float:
    """Time of a good sparse kernel of the workload's pattern."""
    return sum(sparse_us_parts(workload, target).values())


def sparse_us_parts(workload: Workload, target: Target) -> dict[str, float]:
    """What it is spent on, as in roofline.sparse_parts: the launch, and the slowest of what happens at once."""
    density = max(workload.pattern.density, 1.0 / (workload.m * workload.k))
    if workload.pattern.kind in ("rows", "columns"):
        return {"call": _LAUNCH_US, "arithmetic": density * (dense_us(workload, target) - _LAUNCH_US)}
    nnz = density * workload.m * workload.k
    if isinstance(workload.layout_in, Plain):
        return {"call": _LAUNCH_US, "weights": nnz * _VECTOR_ENTRY_BYTES / _L2_RATE}
    rate = _CLOCK * _LANES * target.sms * _SHARED_SHARE * _SPARSE_EFFICIENCY
    at_once = {
        "loads": nnz * max(workload.n, 32) / rate,
        "weights": nnz * _ENTRY_BYTES / _L2_RATE,
        "activations": workload.activation_bytes / _L2_RATE,
    }
    slowest = max(at_once, key=at_once.__getitem__)
    return {"call": _LAUNCH_US, slowest: at_once[slowest]}


def gpu_roof(target: Target) -> tuple[float, float]:
    """(float32 GFLOP/s of all multiprocessors, GB/s from L2)."""
    return 2e-3 * _CLOCK * _LANES * target.sms, 1e-3 * _L2_RATE


def node_us(nbytes: float) -> float:
    """Time of an operator that reads and writes so many bytes and computes little."""
    return _LAUNCH_US + nbytes / _L2_RATE


def us_of(clocks: float) -> float:
    """Microseconds of clocks at the highest rate of an H200."""
    return clocks / _CLOCK
