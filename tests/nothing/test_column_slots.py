"""Slots of columns hold every weight once, where a kernel looks for it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsetvm.formats.column_slots import ENTRIES, MOST_ROWS, SLOT_BYTES, pack_column_slots


def column_of(slots: np.ndarray, first: int, k: int, column: int) -> list[tuple[int, float]]:
    """What a block's kernel reads for a column, as it does."""
    found, number = [], first + column
    while True:
        slot = slots[number]
        values = slot[: 4 * ENTRIES].view(np.float32)
        low, high = (int(word) for word in slot[4 * ENTRIES :].view(np.uint32))
        rows = [low >> 6 * i & 63 for i in range(ENTRIES - 1)] + [high & 63]
        count, following = high >> 6 & 7, high >> 9
        assert count == ENTRIES or not following
        assert not values[count:].any()
        found += list(zip(rows[:count], values[:count].tolist(), strict=True))
        if not following:
            return found
        number = first + k - 1 + following


def unpacked(weight: np.ndarray, rows: int) -> np.ndarray:
    packed = pack_column_slots(weight, rows)
    m, k = weight.shape
    again = np.zeros((len(packed.first) * rows, k), np.float32)
    for block, first in enumerate(packed.first):
        for column in range(k):
            for row, value in column_of(packed.slots, int(first), k, column):
                assert again[block * rows + row, column] == 0
                again[block * rows + row, column] = value
    assert not again[m:].any()
    return again[:m]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 90), st.integers(1, 40), st.sampled_from([1, 8, 16, 64]), st.floats(0, 1), st.integers(0, 9))
def test_every_weight_is_found_once(m: int, k: int, rows: int, density: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((m, k)).astype(np.float32) * (rng.random((m, k)) < density)
    np.testing.assert_array_equal(unpacked(weight, rows), weight)


def test_columns_with_up_to_six_weights_take_one_slot() -> None:
    weight = np.zeros((32, 50), np.float32)
    weight[:ENTRIES] = 1
    assert pack_column_slots(weight, 32).slots.shape == (50, SLOT_BYTES)
    weight[ENTRIES, 7] = 1
    assert pack_column_slots(weight, 32).slots.shape == (51, SLOT_BYTES)


def test_more_rows_than_six_bits_name_are_refused() -> None:
    with pytest.raises(ValueError, match="6 bits"):
        pack_column_slots(np.ones((2, 2), np.float32), MOST_ROWS + 1)
