"""Minimal filtering: four outputs of a filter with r taps by r + 3 products instead of 4 r (Winograd; Toom and Cook).

    y = A ((G g) * (B d))        d: r + 3 inputs, g: r taps, y[i] = sum_j d[i + j] g[j]

The points are 0, 1, -1, 2, -2 (and 1/2, -1/2 for r = 5; these six without 0 for r = 4) and infinity. In float32 the
result is off by a few units in the last place of the largest input that its tile reads, not of the inputs that its own
window reads.
"""

from __future__ import annotations

import numpy as np

OUTPUTS = 4
HUGE, HUGE_WEIGHT = 1e20, 1e10  # inputs and transformed weights below these make no sum that overflows
_POINTS = {
    3: (0.0, 1.0, -1.0, 2.0, -2.0),
    4: (1.0, -1.0, 2.0, -2.0, 0.5, -0.5),
    5: (0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5),
}
TAPS = tuple(_POINTS)


def points(taps: int) -> tuple[float, ...]:
    """The finite points; behind 0, where that is one, they come in pairs of opposite signs."""
    return _POINTS[taps]


def filter_matrix(taps: int) -> np.ndarray:
    """G, float64 (taps + 3, taps)."""
    finite = points(taps)
    rows = [np.power(p, np.arange(taps)) / np.prod([p - q for q in finite if q != p]) for p in finite]
    return np.array([*rows, np.eye(taps)[-1]])


def input_matrix(taps: int) -> np.ndarray:
    """B, float64 (taps + 3, taps + 3)."""
    finite = points(taps)
    size = len(finite) + 1
    rows = [_coefficients([q for q in finite if q != p], size) for p in finite]
    return np.array([*rows, _coefficients(list(finite), size)])


def output_matrix(taps: int) -> np.ndarray:
    """A, float64 (4, taps + 3)."""
    columns = [np.power(p, np.arange(OUTPUTS)) for p in points(taps)]
    return np.array([*columns, np.eye(OUTPUTS)[-1]]).T


def rows_of_parities(taps: np.ndarray) -> list[np.ndarray]:
    """Of filters (m, channels, kh, kw) for stride 2: what the input rows of each parity meet, (m, channels, kh / 2
    rounded up, kw), zeros behind where that is a row less.
    """
    high = -(-taps.shape[2] // 2)
    parts = [taps[:, :, first::2] for first in range(2)]
    return [np.pad(part, ((0, 0), (0, 0), (0, high - part.shape[2]), (0, 0))) for part in parts]


def _coefficients(roots: list[float], size: int) -> np.ndarray:
    """Of the monic polynomial with these roots, the lowest first, padded to `size`."""
    low_first = np.poly(roots)[::-1]
    return np.pad(low_first, (0, size - low_first.size))
