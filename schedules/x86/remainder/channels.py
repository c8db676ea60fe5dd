"""Images whose channels come from several images of one size, in Planes: concatenation, split and shuffle.

    for plane of Y:  which plane of which input it is, is a table; copied whole, zeros included

Requires: all inputs and Y in Planes of one size and pad.
"""

from __future__ import annotations

from collections.abc import Sequence

from sparsetvm.schedules.operators import channel_table, check_channels
from sparsetvm.schedules.x86 import tir
from tvm.tirx.script import builder as B

from sparsetvm.core.layout import Planes
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Epilogue

__all__ = ["channel_table", "gather_channels_kernel"]


def gather_channels_kernel(
    parts: Sequence[Planes], out: Planes, epilogue: Epilogue | None, target: Target, symbol: str
) -> tir.Expr:
    """PrimFunc (X0, X1, ..., T, Y): Y[b, c] = X[b, channel], both as row c of T says (`channel_table`).

    epilogue: None; here normalisations have a kernel of their own. Raises SparseTvmError for planes that do not fit.
    """
    check_channels(parts, out, epilogue is None)
    lanes, stride = target.lanes, out.plane_stride
    inputs = {f"X{at}": part.physical_shape(()) for at, part in enumerate(parts)}
    with tir.prim_func(symbol) as builder:
        *xs, table, y = tir.flat_args(**inputs, T=(out.channels * 4, "int32"), Y=out.physical_shape(()))
        with tir.outer(out.batch * out.channels, target.threads) as plane:
            image, channel = plane // out.channels, plane % out.channels
            for number, (x, part) in enumerate(zip(xs, parts, strict=True)):
                with B.If(table[channel * 4] == number), B.Then():
                    start = tir.let((image * part.channels + table[channel * 4 + 1]) * stride)
                    with B.serial(stride // lanes) as at:
                        tir.vstore(y, tir.vload(x, start + at * lanes, lanes), plane * stride + at * lanes, lanes)
    return builder.get()
