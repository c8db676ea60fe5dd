"""The arguments of all layer kernels: X, residual, packed arrays, Y, in the order that schedules/base.py documents."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from sparsetvm.schedules.base import Packed

from sparsetvm.core.workload import Workload


def initial_sums(bias: np.ndarray | None, rows: int) -> np.ndarray:
    """What the sums of `rows` output rows start from, float32: the bias, or zeros."""
    return np.zeros(rows, np.float32) if bias is None else bias.astype(np.float32)


def layer_args(workload: Workload, packed: Packed) -> tuple[Any, Any, list[Any], Any]:
    """Declare the arguments; returns flat 1-D X, residual (None without one), the packed arrays, flat Y."""
    from tvm.tirx.script import builder as tb

    shape_in = workload.layout_in.physical_shape((workload.n, workload.k))
    shape_out = workload.layout_out.physical_shape((workload.n, workload.m))
    # TIR wants every argument declared before the first alias.
    x = tb.arg("X", tb.buffer(shape_in, "float32"))
    shape_residual = workload.residual_layout.physical_shape((workload.n, workload.m))
    r = tb.arg("R", tb.buffer(shape_residual, "float32")) if workload.epilogue.residual else None
    arrays = [tb.arg(f"A{i}", tb.buffer((a.size,), str(a.dtype))) for i, a in enumerate(packed.arrays)]
    y = tb.arg("Y", tb.buffer(shape_out, "float32"))

    def flat(buffer: Any, shape: tuple[int, ...]) -> Any:
        return tb.decl_buffer((math.prod(shape),), "float32", data=buffer.data)

    return flat(x, shape_in), flat(r, shape_residual) if r is not None else None, arrays, flat(y, shape_out)
