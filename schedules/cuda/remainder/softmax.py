"""Softmax over the last axis of a plain [rows, n] matrix: threads run along the row.

for each row: scaled, mask added; maximum; exp(x - maximum) summed; scaled by 1 / sum

Requires: leading axes that merge to at most three where a mask is broadcast.
"""

from __future__ import annotations

from sparsetvm.schedules.cuda.launch import Launch
from sparsetvm.schedules.cuda.remainder.rows import share_rows
from sparsetvm.schedules.operators import Softmax, merged_axes

from sparsetvm.core.layout import PLAIN
from sparsetvm.core.target import Target
from sparsetvm.errors import SparseTvmError

__all__ = ["Softmax", "softmax_kernel", "softmax_supported"]

_MOST_AXES = 3


def softmax_supported(softmax: Softmax) -> bool:
    """True when `softmax_kernel` can implement it."""
    return len(_axes(softmax)) <= _MOST_AXES


def softmax_kernel(softmax: Softmax, target: Target, symbol: str) -> Launch:
    """Launch (X, [mask], Y), X and Y plain of the given shape; any length of the last axis.

    A row with a NaN becomes NaN. Raises SparseTvmError when `softmax_supported` does not hold.
    """
    axes = _axes(softmax)
    if len(axes) > _MOST_AXES:
        raise SparseTvmError(
            f"no kernel for {softmax}: axes that the mask has and lacks alternate {len(axes)} times",
            hint="add the mask by a node of its own",
        )
    rows = share_rows(PLAIN, softmax.shape, target)
    axes = [(1, (0,))] * (_MOST_AXES - len(axes)) + axes
    sizes, steps = [size for size, _ in axes], [step for _, (step,) in axes]
    defines = (*rows.defines, ("SP_SCALE", softmax.scale), ("SP_MASK", int(softmax.mask_shape is not None)))
    scalars = (*rows.scalars, *sizes[1:], *steps)
    return Launch("rows.cu", "softmax", defines, (rows.blocks, 1, 1), rows.block, scalars=scalars, overlaps=True)


def _axes(softmax: Softmax) -> list[tuple[int, tuple[int, ...]]]:
    """Axes of the rows as `merged_axes` gives them: entries, floats from one to the next in the mask."""
    mask = softmax.mask_shape or ()
    return merged_axes(softmax.shape[:-1], [(mask[:-1], softmax.shape[-1])])
