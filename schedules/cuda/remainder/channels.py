"""Images whose channels come from several images of one size: concatenation, split and shuffle in Planes.

    thread: four floats of a plane of Y: which plane of which input they come from is a table

Where a normalisation follows, its factor and addend of each channel and its activation are part of the same kernel.

Requires: all inputs and Y in Planes of one size and pad, so that whole planes are copied, zeros included.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from sparsetvm.schedules.cuda.epilogue import epilogue_defines
from sparsetvm.schedules.cuda.launch import Launch

from sparsetvm.core.layout import Planes
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Epilogue
from sparsetvm.errors import SparseTvmError

_THREADS = 128


def channel_table(channels: np.ndarray, parts: Sequence[Planes]) -> np.ndarray:
    """(channels, 4) int32: number of the input, channel in it, how many it has, 0. channels: (channels, 2) of these."""
    table = np.zeros((len(channels), 4), np.int32)
    table[:, :2] = channels
    table[:, 2] = np.array([part.channels for part in parts], np.int32)[channels[:, 0]]
    return table


def gather_channels_kernel(
    parts: Sequence[Planes], out: Planes, epilogue: Epilogue | None, target: Target, symbol: str
) -> Launch:
    """Launch (X0, X1, ..., T, [A, B], Y): Y[b, c] = X[b, channel], both as row c of T says (`channel_table`).

    epilogue: None, or what follows a factor A[c] and an addend B[c]: Y = activation(A * X + B), zero around images.
    Raises SparseTvmError when the planes of an input do not lie as those of the output.
    """
    for part in parts:
        if (part.height, part.width, part.pad, part.phases, part.batch) != (
            *(out.height, out.width, out.pad, out.phases, out.batch),
        ):
            raise SparseTvmError(f"channels of {part} do not fit into {out}", hint="convert the image first")
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
