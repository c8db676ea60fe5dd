"""The column format holds exactly the matrix, part by part, and nothing of its padding reaches a row."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsetvm.formats.columns import LANES, MAX_ROWS, SPARE, ColumnFormat, pack_columns


def random_weight(m: int, k: int, density: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((m, k)).astype(np.float32)
    weight[rng.random((m, k)) >= density] = 0
    return weight


def product(fmt: ColumnFormat, x: np.ndarray, m: int) -> np.ndarray:
    """What the kernel computes: the columns of non-zero x, added to the rows of each part."""
    values = fmt.values.reshape(-1, fmt.size, fmt.height)
    ids = fmt.ids.view(np.uint16).reshape(-1, fmt.size)
    first = fmt.first.reshape(-1, fmt.first_stride)
    y = np.zeros(-(-m // LANES) * LANES)
    for part, begins in enumerate(first):
        rows = (fmt.bounds[part + 1] - fmt.bounds[part]) * LANES
        sums = np.zeros(rows + SPARE * fmt.height)
        for k in np.flatnonzero(x):
            for block in range(begins[k], begins[k + 1]):
                for entry in range(fmt.size):
                    at = int(ids[block, entry]) * fmt.height
                    sums[at : at + fmt.height] += values[block, entry] * float(x[k])
        assert not sums[rows:].any()
        y[fmt.bounds[part] * LANES :][:rows] = sums[:rows]
    return y[:m]


@given(
    m=st.integers(1, 70), k=st.integers(1, 40), density=st.sampled_from([0.0, 0.05, 0.4, 1.0]),
    parts=st.integers(1, 4), height=st.sampled_from([1, 4, 8, 16]), size=st.sampled_from([4, 8, 16]),
    active=st.sampled_from([0.0, 0.2, 1.0]), seed=st.integers(0, 9),
)  # fmt: skip
def test_columns_give_the_product(m, k, density, parts, height, size, active, seed):
    weight = random_weight(m, k, density, seed)
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal(k) * (rng.random(k) < active)).astype(np.float32)
    fmt = pack_columns(weight, parts, height=height, size=size)
    np.testing.assert_allclose(product(fmt, x, m), weight.astype(np.float64) @ x, atol=1e-5)


def test_entries_of_blocks_hold_no_zero_but_in_the_last_block_of_a_column():
    weight = np.kron(random_weight(6, 30, 0.3), np.ones((8, 1), np.float32))
    fmt = pack_columns(weight, 1, height=8, size=4)
    entries = fmt.values.reshape(-1, 8)
    assert np.array_equal(np.count_nonzero(entries, axis=1) == 8, entries.any(axis=1))
    assert np.count_nonzero(entries.any(axis=1)) == np.count_nonzero(weight) // 8


def test_columns_behind_the_last_are_empty():
    fmt = pack_columns(random_weight(20, 5, 0.5), 2, height=1, size=4)
    first = fmt.first.reshape(2, -1)
    assert first.shape[1] >= 5 + LANES
    assert np.all(first[:, 5:] == first[:, 5:6])


def test_more_rows_than_ids_can_name_are_refused():
    with pytest.raises(ValueError, match="16-bit"):
        pack_columns(np.zeros((MAX_ROWS + 1, 1), np.float32), 1, height=1, size=4)
