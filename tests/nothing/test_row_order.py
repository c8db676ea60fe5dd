"""cluster_rows orders rows so that groups share columns."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sparsetvm.formats.row_order import cluster_rows


def distinct_columns(mask: np.ndarray, group: int) -> int:
    return sum(int(mask[at : at + group].any(0).sum()) for at in range(0, len(mask), group))


@given(st.integers(0, 60), st.integers(1, 40), st.integers(1, 32), st.floats(0, 1), st.integers(0, 99))
def test_order_is_a_permutation(m: int, k: int, group: int, density: float, seed: int) -> None:
    mask = np.random.default_rng(seed).random((m, k)) < density
    assert sorted(cluster_rows(mask, group)) == list(range(m))


def test_rows_of_equal_columns_come_together() -> None:
    mask = np.zeros((12, 9), bool)
    for row in range(12):
        mask[row, 3 * (row % 3) : 3 * (row % 3) + 3] = True
    order = cluster_rows(mask, 4)
    assert distinct_columns(mask, 4) == 27
    assert distinct_columns(mask[order], 4) == 9


def test_random_rows_share_more_columns_than_before() -> None:
    mask = np.random.default_rng(0).random((256, 256)) < 0.05
    assert distinct_columns(mask[cluster_rows(mask, 28)], 28) < 0.9 * distinct_columns(mask, 28)


def test_rows_of_uneven_length_form_groups_by_length() -> None:
    mask = np.zeros((8, 16), bool)
    for row in range(8):
        mask[row, : 16 if row % 2 else 1] = True
    assert set(cluster_rows(mask, 4)[:4]) == {1, 3, 5, 7}
