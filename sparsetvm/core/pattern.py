"""Summary of where the non-zeros of a weight matrix lie: what a record is matched on and what the cost model sees."""

from __future__ import annotations

import hashlib
from typing import Literal

import msgspec
import numpy as np

PatternKind = Literal["dense", "unstructured", "block", "n:m", "rows", "columns"]


class PatternSummary(msgspec.Struct, frozen=True):
    """Where the non-zeros of an M x K weight matrix lie.

    kind: dense (few zeros), unstructured, block (r x c blocks are zero or not), n:m (n of every m along K), rows or
        columns (whole output or input channels are zero, the rest dense).
    block: (r, c) of a block pattern, (n, m) of an N:M pattern, (1, 1) otherwise.
    density: non-zeros / (M * K).
    row_imbalance: longest row / mean row (1.0 = even; 0.0 when there is no non-zero).
    empty_rows: rows without a non-zero.
    digest: of the positions only, so other values in the same places give the same digest.
    """

    kind: PatternKind
    block: tuple[int, int]
    density: float
    row_imbalance: float
    empty_rows: int
    digest: str

    @property
    def sparsity(self) -> float:
        return 1.0 - self.density

    def describe(self) -> str:
        """Short text for tables: "unstructured", "block 4x1", "2:4", "rows", ..."""
        if self.kind == "block":
            return f"block {self.block[0]}x{self.block[1]}"
        if self.kind == "n:m":
            return f"{self.block[0]}:{self.block[1]}"
        return self.kind


def pattern_digest(weight: np.ndarray) -> str:
    """Digest of the shape and the non-zero positions of `weight` (values do not matter)."""
    digest = hashlib.sha256(repr(weight.shape).encode())
    digest.update(np.packbits(weight != 0).tobytes())
    return digest.hexdigest()[:16]
