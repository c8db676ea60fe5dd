"""Images whose channels come from several images of one size: concatenation, split and shuffle in Planes.

    thread: four floats of a plane of Y: which plane of which input they come from is a table

Where a normalisation follows, its factor and addend of each channel and its activation are part of the same kernel.

Requires: all inputs and Y in Planes of one size and pad, so that whole planes are copied, zeros included.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from sparsetvm.schedules.cuda.epilogue import epilogue_defines
from sparsetvm.schedules.cuda.launch import Launch
from sparsetvm.schedules.operators import channel_table, check_channels

from sparsetvm.core.layout import Planes
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Epilogue

__all__ = ["channel_table", "gather_channels_kernel"]

_THREADS = 128


def gather_channels_kernel(
    parts: Sequence[Planes], out: Planes, epilogue: Epilogue | None, target: Target, symbol: str
) -> Launch:
    """Launch (X0, X1, ..., T, [A, B], Y): Y[b, c] = X[b, channel], both as row c of T says (`channel_table`).

    epilogue: None, or what follows a factor A[c] and an addend B[c]: Y = activation(A * X + B), zero around images.
    Raises SparseTvmError when the planes of an input do not lie as those of the output.
    """
    check_channels(parts, out)
    count = math.prod(out.physical_shape(()))
    defines = (("SP_AFFINE", int(epilogue is not None)), *epilogue_defines(epilogue or Epilogue()))
    scalars = (*(count, out.channels, out.plane_stride, out.origin, out.row_stride, out.width, out.positions),)
    each = " ".join(f"f({number})" for number in range(len(parts)))
    return Launch(
        "channels.cu",
        "gather_channels",
        defines,
        (-(-count // (4 * _THREADS)), 1, 1),
        _THREADS,
        scalars=scalars,
        text=f'#define SP_EACH_PART(f) {each}\n#include "channels.cuh"\n',
        overlaps=True,
    )
