"""The peak of a core: float32 operations per second of fused multiply-adds that wait for nothing."""

from __future__ import annotations

import numpy as np

from sparsetvm.core.target import Target
from sparsetvm.measure.compile import tvm_target
from sparsetvm.measure.timing import time_evaluator, time_repeats

_STEPS = 4096
_SYMBOL = "sparsetvm_peak"


def measured_peak(target: Target) -> float:
    """GFLOP/s of one core, multiply and add counted one each: the best of twenty repeats."""
    import tvm
    from sparsetvm.schedules.x86 import tir
    from tvm.tirx.script import builder as tb

    chains = target.registers - 8  # more than latency times units on any core; the rest are operands
    with tir.prim_func(_SYMBOL) as builder:
        x, y = tir.flat_args(X=(2 * target.lanes,), Y=(chains * target.lanes,))
        sums = tir.Registers(chains, target.lanes, 1.0)
        factor, addend = (tir.let(tir.vload(x, at * target.lanes, target.lanes)) for at in (0, 1))
        with tb.serial(_STEPS):
            for chain in range(chains):
                # The product depends on the sum: no compiler can take it out of the loop.
                sums[chain] = sums[chain] * factor + addend
        for chain in range(chains):
            tir.vstore(y, sums[chain], chain * target.lanes, target.lanes)
    executable = tvm.compile(builder.get(), target=tvm_target(target))
    given = np.repeat(np.array([0.5, 1.0], np.float32), target.lanes)
    arguments = [tvm.runtime.tensor(given), tvm.runtime.empty((chains * target.lanes,), "float32")]
    times = time_repeats(time_evaluator(executable.mod, _SYMBOL, arguments), 20, 1.0)
    return 2e-3 * _STEPS * chains * target.lanes / min(times)
