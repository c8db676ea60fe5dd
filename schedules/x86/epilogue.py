"""What all matmul-like x86 kernels do around their sums: zero borders, residual, activation, pad columns."""

from __future__ import annotations

from typing import Any

from sparsetvm.schedules.x86.geometry import TapGeometry, Zeros

from sparsetvm.core.workload import Epilogue


def zero_borders(y: Any, borders: tuple[Zeros, ...], lanes: int, threads: int) -> None:
    """Write the zeros around the tiles of Y; nothing for token tiles.

    Kernels own their whole output buffer: memory is reused between layers, and the next convolution reads the borders.
    """
    from sparsetvm.schedules.x86 import tir
    from tvm.tirx.script import builder as tb

    for zeros in borders:
        with tir.outer(zeros.count, threads) as at:
            for start, stop in zeros.ranges:
                with tb.serial((stop - start) // lanes) as i:
                    tir.vstore(y, tir.splat(0.0, lanes), at * zeros.step + start + i * lanes, lanes)


def finish_vector(total: Any, residual: Any, at: Any, epilogue: Epilogue, geometry: TapGeometry, mask: Any) -> Any:
    """`total` (the bias is already in it) with residual, activation and pad-column mask applied.

    `residual` is the flat residual buffer or None, `at` the offset of the vector in it; `mask` is the uint16 lane mask
    expression of the tile or None. `total` must be bound.
    """
    from sparsetvm.schedules.x86 import tir

    lanes = geometry.lanes
    if residual is not None:
        total = tir.let(total + tir.vload(residual, at, lanes))
    total = tir.activated(total, epilogue.activation, epilogue.low, epilogue.high, lanes)
    return total if mask is None else mask_lanes(total, mask, lanes)


def mask_lanes(value: Any, mask: Any, lanes: int) -> Any:
    """`value` where the bit of the lane is set in the uint16 `mask`, else zero."""
    from tvm import tirx

    bits = tirx.Broadcast(tirx.Cast("int32", mask), lanes)
    chosen = tirx.bitwise_and(bits, _lane_bits(lanes))
    return tirx.Select(
        tirx.NE(chosen, tirx.Broadcast(tirx.const(0, "int32"), lanes)),
        value,
        tirx.Broadcast(tirx.const(0.0, "float32"), lanes),
    )


def _lane_bits(lanes: int) -> Any:
    """The vector (1, 2, 4, ..., 2^(lanes-1))."""
    from tvm import tirx

    return tirx.shift_left(tirx.Broadcast(tirx.const(1, "int32"), lanes), tirx.Ramp(0, 1, lanes))


def activate_in_place(y: Any, at: Any, epilogue: Epilogue, lanes: int, mask: Any) -> None:
    """Apply an activation to the stored vector y[at : at + lanes]; pad columns stay zero."""
    from sparsetvm.schedules.x86 import tir

    value = tir.let(tir.vload(y, at, lanes))
    value = tir.activated(value, epilogue.activation, epilogue.low, epilogue.high, lanes)
    tir.vstore(y, value if mask is None else mask_lanes(value, mask, lanes), at, lanes)
