"""The k largest values of each row; all others become zero (k_winners.cu).

for each row, by a block: count values in bins of equal width; rank those that share the bin of the k-th largest
                          (else, four times: count the keys that begin like the k-th largest by their next byte)
                          y = x where key >= k-th largest
"""

from __future__ import annotations

import math
from typing import Literal

from sparsetvm.schedules.cuda.launch import Launch

from sparsetvm.core.layout import PLAIN, AnyLayout, Plain, Planes
from sparsetvm.core.target import Target

_LEAST_THREADS, _MOST_THREADS = 32, 1024
_EACH = 4  # values of a thread, before blocks become larger
_KEPT = 16  # values of a thread in registers


def k_winners_kernel(
    shape: tuple[int, ...],
    k: int,
    ties: Literal["first", "all"],
    target: Target,
    symbol: str,
    *,
    axis: int = -1,
    layouts: tuple[AnyLayout, AnyLayout] = (PLAIN, PLAIN),
) -> Launch:
    """Launch (X, Y) of the given logical shape; a row is everything from `axis` on and has at least k values.

    ties: of values equal to the k-th, "first" keeps those with the lowest index until there are k, "all" keeps all.
    layouts: of X and Y, plain, or for images with axis 1 Planes with phases (1, 1), of one geometry where both are.
    """
    row = shape[axis % len(shape) :]
    values, rows = math.prod(row), math.prod(shape) // math.prod(row)
    planes = next((layout for layout in layouts if isinstance(layout, Planes)), None)
    numbered = values if planes is None else shape[1] * planes.plane_stride
    threads = min(_MOST_THREADS, max(_LEAST_THREADS, 1 << (math.ceil(numbered / _EACH) - 1).bit_length()))
    each = math.ceil(numbered / threads)
    defines: list[tuple[str, int | float]] = [
        *(("SP_THREADS", threads), ("SP_KEEP", each if each <= _KEPT else 0), ("SP_FIRST", int(ties == "first"))),
        *(
            (f"SP_{side}_PLANES", int(not isinstance(layout, Plain)))
            for side, layout in zip("XY", layouts, strict=True)
        ),
    ]
    if planes is not None:
        defines += [
            *(("SP_STRIDE", planes.plane_stride), ("SP_ORIGIN", planes.origin), ("SP_PITCH", planes.row_stride)),
            *(("SP_HEIGHT", planes.height), ("SP_WIDTH", planes.width)),
        ]
    steps = (values if isinstance(layout, Plain) else numbered for layout in layouts)
    return Launch(
        "k_winners.cu", "k_winners", tuple(defines), (rows, 1, 1), threads, scalars=(numbered, k, *steps), overlaps=True
    )
