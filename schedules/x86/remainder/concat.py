"""Images put together along their channels: in Planes, whose planes lie one after the other, copies of whole runs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sparsetvm.schedules.x86 import tir
from sparsetvm.schedules.x86.remainder.runs import parallel_run
from tvm.tirx.script import builder as B

from sparsetvm.core.layout import Planes
from sparsetvm.core.target import Target


def concat_kernel(parts: Sequence[Planes], out: Planes, target: Target, symbol: str) -> tir.Expr:
    """PrimFunc (X0, X1, ..., Y): Y holds the planes of all parts of an image in their order; one grid for all."""
    shapes = [part.physical_shape(()) for part in parts]
    sizes = [math.prod(shape[1:]) for shape in shapes]  # of one image
    lanes = target.lanes
    with tir.prim_func(symbol) as builder:
        *xs, y = tir.flat_args(**{f"X{i}": shape for i, shape in enumerate(shapes)}, Y=out.physical_shape(()))
        with B.serial(out.batch) as image:
            begin = 0
            for x, size in zip(xs, sizes, strict=True):
                source, destination = image * size, image * sum(sizes) + begin

                def copy(at: tir.Expr, end: int, x=x, source=source, destination=destination) -> None:  # type: ignore[no-untyped-def]
                    tir.vstore_lanes(y, tir.vload_lanes(x, source + at, lanes, 0, end), destination + at, lanes, 0, end)

                parallel_run(size, lanes, target.threads, copy)
                begin += size
    return builder.get()
