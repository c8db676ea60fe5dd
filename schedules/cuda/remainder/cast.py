"""Conversions between float16 and float32 of a whole plain tensor: what the inputs and outputs of a model need.

Requires: both tensors start at a multiple of 16 bytes.
"""

from __future__ import annotations

from sparsetvm.schedules.cuda.launch import Launch

from sparsetvm.core.target import Target

_THREADS = 128


def cast_kernel(count: int, narrow: bool, target: Target, symbol: str) -> Launch:
    """Launch (X, Y) of `count` numbers: float32 to float16 where `narrow`, rounded to the nearest; else the reverse."""
    blocks = -(-count // (4 * _THREADS))
    defines = (("SP_NARROW", int(narrow)),)
    return Launch("cast.cu", "cast", defines, (blocks, 1, 1), _THREADS, scalars=(count,), overlaps=True)
