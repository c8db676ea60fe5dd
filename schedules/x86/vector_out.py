"""What the kernels of few tokens share: when they apply, and their last step, sums -> residual, activation -> y."""

from __future__ import annotations

from typing import Any

from sparsetvm.core.layout import Plain
from sparsetvm.core.workload import FEW_TOKENS, Epilogue, Workload


def reads_few_tokens(workload: Workload) -> bool:
    """True for a product with at most FEW_TOKENS tokens in plain layouts."""
    layouts = (workload.layout_in, workload.layout_out, workload.residual_layout)
    return workload.op == "matmul" and workload.n <= FEW_TOKENS and all(isinstance(at, Plain) for at in layouts)


def write_vector_output(sums: Any, stride: int, residual: Any, y: Any, workload: Workload, lanes: int) -> None:
    """Finish `sums`, n runs of m floats `stride` apart, into the flat `y` (n, m).

    `stride` is a multiple of `lanes`. The tail of m that fills no vector is finished in `sums` itself.
    """
    from sparsetvm.schedules.x86 import tir
    from tvm.tirx.script import builder as tb

    epilogue, m = workload.epilogue, workload.m
    whole = m // lanes * lanes
    for token in range(workload.n):
        start, out = token * stride, token * m
        if residual is not None:
            with tb.serial(m) as i:
                tb.buffer_store(sums, sums[start + i] + residual[out + i], [start + i])

        def activated(at: Any) -> Any:
            value = tir.let(tir.vload(sums, at, lanes))
            return tir.activated(value, epilogue.activation, epilogue.low, epilogue.high, lanes)

        with tb.serial(m // lanes) as i:
            tir.vstore(y, activated(start + i * lanes), out + i * lanes, lanes)
        if epilogue.activation != "none" and whole < m:
            tir.vstore(sums, activated(start + whole), start + whole, lanes)
        with tb.serial(m - whole) as i:
            tb.buffer_store(y, sums[start + whole + i], [out + whole + i])


def write_lanes(total: Any, residual: Any, y: Any, where: Any, mask: Any, epilogue: Epilogue) -> None:
    """Finish one vector of 16 sums into `y` at the places `where`; mask: the lanes that are rows, None for all."""
    from sparsetvm.schedules.x86 import tir
    from tvm.tirx.script import builder as tb

    if residual is not None:
        added = residual[where] if mask is None else tb.masked_load("float32x16", residual, where, mask)
        total = tir.let(total + added)
    value = tir.activated(total, epilogue.activation, epilogue.low, epilogue.high, 16)
    if mask is None:
        tb.buffer_store(y, value, [where])
    else:
        tb.evaluate(tb.masked_store(y, value, where, mask))
