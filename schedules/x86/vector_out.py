"""What the matrix-vector kernels share: when they apply, and their last step, sums -> residual, activation -> y."""

from __future__ import annotations

from typing import Any

from sparsetvm.core.layout import Plain
from sparsetvm.core.workload import Workload


def is_matrix_vector(workload: Workload) -> bool:
    """True for one token in plain layouts."""
    plain = isinstance(workload.layout_in, Plain) and isinstance(workload.layout_out, Plain)
    return workload.op == "matmul" and workload.n == 1 and plain


def write_vector_output(sums: Any, permutation: Any, residual: Any, y: Any, workload: Workload, lanes: int) -> None:
    """Finish `sums` (padded to whole vectors) into the flat `y` of m floats.

    `permutation[i]` is the row of y that sums[i] belongs to, None when rows are in order. The tail of m that fills no
    vector is finished in `sums` itself, which has room for it.
    """
    from sparsetvm.schedules.x86 import tir
    from tvm.tirx.script import builder as tb

    epilogue, m = workload.epilogue, workload.m
    if residual is not None:
        with tb.serial(m) as i:
            row = permutation[i] if permutation is not None else i
            tb.buffer_store(sums, sums[i] + residual[row], [i])
    direct = m // lanes if permutation is None else 0

    def activated(at: Any) -> Any:
        value = tir.let(tir.vload(sums, at, lanes))
        return tir.activated(value, epilogue.activation, epilogue.low, epilogue.high, lanes)

    with tb.serial(direct) as i:
        tir.vstore(y, activated(i * lanes), i * lanes, lanes)
    if epilogue.activation != "none":
        with tb.serial(-(-m // lanes) - direct) as i:
            at = (direct + i) * lanes
            tir.vstore(sums, activated(at), at, lanes)
    with tb.serial(m - direct * lanes) as i:
        row = permutation[direct * lanes + i] if permutation is not None else direct * lanes + i
        tb.buffer_store(y, sums[direct * lanes + i], [row])
