"""Sums, products and activations of whole tensors, on the physical buffers: the layout hardly matters.

Requires: all operands in one layout. Where the function would not keep the zeros around the pixels of Planes zero (a
sigmoid), they are written anew.
"""

from __future__ import annotations

import math
from typing import Literal

from sparsetvm.schedules.cuda.epilogue import epilogue_defines
from sparsetvm.schedules.cuda.launch import Launch

from sparsetvm.core.layout import AnyLayout, Planes
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Epilogue

_THREADS = 128
_OPS = {"add": 1, "mul": 2}
_SCALE = 3  # by one factor for each plane


def binary_kernel(
    op: Literal["add", "mul"],
    layout: AnyLayout,
    shape: tuple[int, ...],
    epilogue: Epilogue,
    target: Target,
    symbol: str,
) -> Launch:
    """Launch (X0, X1, Y): activation(X0 op X1); only the activation of `epilogue` is read."""
    return _elementwise(_OPS[op], layout, shape, epilogue)


def unary_kernel(layout: AnyLayout, shape: tuple[int, ...], epilogue: Epilogue, target: Target, symbol: str) -> Launch:
    """Launch (X, Y): activation(X); only the activation of `epilogue` is read."""
    return _elementwise(0, layout, shape, epilogue)


def scale_channels_kernel(layout: Planes, shape: tuple[int, ...], target: Target, symbol: str) -> Launch:
    """Launch (X, S, Y): Y[b, c] = X[b, c] * S[b, c], S plain (batch, channels, 1, 1): a gate of whole channels."""
    return _elementwise(_SCALE, layout, shape, Epilogue())


def _elementwise(op: int, layout: AnyLayout, shape: tuple[int, ...], epilogue: Epilogue) -> Launch:
    count = math.prod(layout.physical_shape(shape))
    masked = isinstance(layout, Planes) and (op == _SCALE or not _keeps_zero(epilogue))
    activation = Epilogue(activation=epilogue.activation, low=epilogue.low, high=epilogue.high)
    defines = (("SP_OP", op), ("SP_PLANES", int(masked)), *epilogue_defines(activation))
    where = (1, 0, 1, 0, 0)
    if isinstance(layout, Planes):
        where = (layout.plane_stride, layout.origin, layout.row_stride, layout.width, layout.positions)
    blocks = -(-count // (4 * _THREADS))
    return Launch(
        "elementwise.cu", "elementwise", defines, (blocks, 1, 1), _THREADS, scalars=(count, *where), overlaps=True
    )


def _keeps_zero(epilogue: Epilogue) -> bool:
    """True when the activation of 0 is 0."""
    return epilogue.activation != "sigmoid" and (epilogue.activation != "clip" or epilogue.low <= 0 <= epilogue.high)
