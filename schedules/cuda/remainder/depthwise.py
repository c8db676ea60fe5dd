"""Depthwise convolution (groups == channels, multiplier 1): one plane in, one plane out.

    thread: a column of OUT outputs one below the other: for ky, kx: OUT FMAs with one weight

Requires: X in Planes with phases (1, 1) and a pad that covers all taps, Y (and the residual) in Planes with phases
(1, 1). The work of a plane is one run of threads, so that small planes leave no lanes idle.
"""

from __future__ import annotations

from sparsetvm.schedules.cuda.epilogue import epilogue_defines
from sparsetvm.schedules.cuda.launch import Launch
from sparsetvm.schedules.cuda.remainder.images import images_of
from sparsetvm.schedules.operators import check_depthwise, pack_depthwise

from sparsetvm.core.layout import Planes
from sparsetvm.core.target import Target
from sparsetvm.core.workload import ConvGeometry, Epilogue

__all__ = ["depthwise_kernel", "pack_depthwise"]

_THREADS = 128
_WANTED = 512  # threads that a multiprocessor should have before they take several outputs each


def depthwise_kernel(
    source: Planes, destination: Planes, conv: ConvGeometry, epilogue: Epilogue, target: Target, symbol: str
) -> Launch:
    """Launch (X, [residual], W, B, Y); W and B as `pack_depthwise` makes them (B is always there).

    Everything of Y outside the image becomes zero. Raises SparseTvmError when the layouts do not fit the convolution.
    """
    check_depthwise(source, destination, conv)
    shape = (destination.batch, destination.channels)
    x = images_of(source, (*shape, source.height, source.width))
    y = images_of(destination, (*shape, destination.height, destination.width))
    outputs = _outputs(y.height, y.planes * y.height * y.row_stride, target)
    count = y.planes * (y.height // outputs * y.row_stride + y.outside)
    defines = (
        *(("SP_OUT", outputs), ("SP_KH", conv.kernel[0]), ("SP_KW", conv.kernel[1]), ("SP_SY", conv.stride[0])),
        *(("SP_SX", conv.stride[1]), ("SP_DY", conv.dilation[0]), ("SP_DX", conv.dilation[1])),
        *epilogue_defines(epilogue),
    )
    scalars = (
        *(count, destination.channels, conv.pads[0], conv.pads[1], x.plane_stride, x.origin, x.row_stride),
        *(y.plane_stride, y.origin, y.row_stride, y.height, y.width, y.outside),
    )
    return Launch(
        "depthwise.cu", "depthwise", defines, (-(-count // _THREADS), 1, 1), _THREADS, scalars=scalars, overlaps=True
    )


def _outputs(height: int, positions: int, target: Target) -> int:
    """Outputs of a thread: the most, up to 4, that divide the rows and leave threads for all multiprocessors."""
    return next(n for n in (4, 3, 2, 1) if height % n == 0 and (n == 1 or positions >= n * _WANTED * target.sms))
