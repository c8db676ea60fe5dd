"""What a kernel computes in, and how far its results may be from those in float64.

TF32 is what tensor cores multiply float32 in: 10 bits of fraction instead of 23. A rounded factor is off by at most
2^-11, by 2e-4 in the root mean square; sums of such products, in float32, by 3e-4 of their terms, however many.
Float16 has the same 10 bits, but its largest number is 65504, and what is smaller than 6e-5 keeps fewer. Bfloat16 has
the range of float32 and 7 bits: eight times the error of TF32. Sums are float32 in all of them.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

Arithmetic = Literal["float32", "tf32", "float16", "bfloat16"]
# Relative L2 error of one layer. A float32 sum of k products in any order is off by about sqrt(k) * 6e-8 of its terms,
# 4e-6 for the longest sums of common networks (k = 4608).
TOLERANCES: dict[Arithmetic, float] = {"float32": 1e-5, "tf32": 1e-3, "float16": 1e-3, "bfloat16": 8e-3}


def network_tolerance(layers: list[Arithmetic]) -> float:
    """Relative L2 error of a network: that of float32, or of as many independent roundings as layers are in
    TF32, float16 or bfloat16.
    """
    squares = sum(TOLERANCES[arithmetic] ** 2 for arithmetic in layers if arithmetic != "float32")
    return squares**0.5 if squares else TOLERANCES["float32"]


def round_to_tf32(array: np.ndarray) -> np.ndarray:
    """float32 values rounded to TF32, halves away from zero (PTX: cvt.rna.tf32.f32)."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    rounded = ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)
    return np.where(np.isfinite(array), rounded, array)


def to_bfloat16(array: np.ndarray) -> np.ndarray:
    """The bits (uint16) of float32 values rounded to bfloat16, halves to even (PTX: cvt.rn.bf16x2.f32)."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(array), np.uint32(0x7FFF), rounded).astype(np.uint16)
