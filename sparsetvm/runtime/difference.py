"""How far values of a compiled model are from ONNX Runtime's, over several inputs."""

from __future__ import annotations

import math

import numpy as np


class Difference:
    """Errors of one value over all inputs that were tried.

    The error of an input is relative to the norm of what the reference has there, or to what the norm usually is where
    that is more: the two logits of a classifier may cancel to a thousandth of what they were added up from, and then no
    two orders of the same sum agree to six digits.
    """

    def __init__(self) -> None:
        self._errors: list[float] = []
        self._norms: list[float] = []
        self._sizes: list[int] = []
        self._largest = 0.0
        self._zeros = True

    def add(self, ours: np.ndarray, theirs: np.ndarray) -> None:
        """Compare arrays of one shape. Equal infinities and NaN in the same places are no error."""
        a, b = ours.astype(np.float64), theirs.astype(np.float64)
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        with np.errstate(invalid="ignore"):
            difference = np.where(same, 0.0, np.abs(a - b))
        self._errors.append(float(np.linalg.norm(difference)))
        self._norms.append(float(np.linalg.norm(np.where(np.isfinite(b), b, 0.0))))
        self._sizes.append(max(1, b.size))
        self._zeros = self._zeros and not b.any()
        largest = float(difference.max()) if difference.size else 0.0
        self._largest = max(self._largest, math.inf if math.isnan(largest) else largest)

    @property
    def relative(self) -> float:
        """The worst relative L2 error. Infinite for a NaN on one side only, absolute where all references are zero."""
        usual = math.sqrt(sum(norm**2 for norm in self._norms) / sum(self._sizes)) if self._sizes else 0.0
        worst = 0.0
        for error, norm, size in zip(self._errors, self._norms, self._sizes, strict=True):
            scale = max(norm, usual * math.sqrt(size))
            relative = error / scale if scale > 0 else error
            worst = max(worst, math.inf if math.isnan(relative) else relative)
        return worst

    @property
    def says_nothing(self) -> bool:
        """True where all references are zero: whatever was computed before them is not to be seen in them."""
        return self._zeros

    @property
    def largest(self) -> float:
        """The largest absolute error of an element."""
        return self._largest
