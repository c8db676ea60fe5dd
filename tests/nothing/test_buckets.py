"""Sizes between the buckets: which pieces a run is put together from, and what of a manifest is believed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsetvm.core.buckets import Dynamic, MaskInput, counts_table, parse_buckets, pieces, smallest_cost
from sparsetvm.errors import UsageError


def dynamics(splits: bool) -> st.SearchStrategy[Dynamic]:
    sizes = st.lists(st.integers(1, 40), min_size=1, max_size=5, unique=True).map(sorted)
    times = st.lists(st.floats(0.1, 1e4), min_size=5, max_size=5)
    return st.builds(lambda s, t: Dynamic("n", tuple(s), splits, tuple(t[: len(s)])), sizes, times)


@given(dynamics(splits=True), st.integers(1, 500))
def test_pieces_cover_every_position_once(dynamic: Dynamic, size: int) -> None:
    found = pieces(dynamic, size)
    position = 0
    for bucket, first in found:
        assert bucket in dynamic.buckets
        assert first == position < size
        position += bucket
    assert position >= size


@given(dynamics(splits=True), st.integers(1, 80))
def test_pieces_cost_no_more_than_any_one_bucket_repeated(dynamic: Dynamic, size: int) -> None:
    cost = dict(zip(dynamic.buckets, dynamic.cost_us, strict=True))
    size = min(size, 2 * dynamic.buckets[-1])
    total = sum(cost[bucket] for bucket, _ in pieces(dynamic, size))
    for bucket in dynamic.buckets:
        assert total <= -(-size // bucket) * cost[bucket] * (1 + 1e-9)


@given(dynamics(splits=False))
def test_padded_run_takes_the_cheapest_bucket_that_holds_it(dynamic: Dynamic) -> None:
    table = smallest_cost(dynamic)
    assert len(table) == dynamic.buckets[-1] + 1
    for size, at in enumerate(table[1:], 1):
        larger = [cost for b, cost in zip(dynamic.buckets, dynamic.cost_us, strict=True) if b >= size]
        assert dynamic.buckets[at] >= size
        assert dynamic.cost_us[at] == min(larger)


def test_a_tail_is_padded_only_where_that_is_cheaper() -> None:
    dynamic = Dynamic("n", (1, 8, 64), True, (10.0, 40.0, 200.0))
    assert pieces(dynamic, 3) == [(1, 0), (1, 1), (1, 2)]
    assert pieces(dynamic, 5) == [(8, 0)]
    assert pieces(dynamic, 65) == [(64, 0), (1, 64)]
    assert [bucket for bucket, _ in pieces(dynamic, 1000)] == [64] * 16


def test_table_has_no_pieces_for_no_positions() -> None:
    assert counts_table(Dynamic("n", (2, 4), True, (1.0, 1.5)))[0].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1,8,64", (None, (1, 8, 64))), ("8, 1,8", (None, (1, 8))), ("seq=16,128", ("seq", (16, 128)))],
)
def test_buckets_are_parsed(text: str, expected: tuple[str | None, tuple[int, ...]]) -> None:
    assert parse_buckets(text) == expected


@pytest.mark.parametrize("text", ["", "0", "1,-8", "a", "=1,2", "1;2", "99999999", ",".join(map(str, range(1, 40)))])
def test_impossible_buckets_are_usage_errors(text: str) -> None:
    with pytest.raises(UsageError, match="--buckets"):
        parse_buckets(text)


@pytest.mark.parametrize(
    "dynamic",
    [
        Dynamic("n", (), True, ()),
        Dynamic("n", (8, 1), True, (1.0, 1.0)),
        Dynamic("n", (0, 1), True, (1.0, 1.0)),
        Dynamic("n", (1 << 30,), True, (1.0,)),
        Dynamic("n", (1, 8), True, (1.0,)),
        Dynamic("n", (1,), True, (float("nan"),)),
        Dynamic("n", (1,), True, (-1.0,)),
        Dynamic("n", (1,), False, (1.0,), (MaskInput("keep", 2, 2),)),
        Dynamic("n", (1,), False, (1.0,), (MaskInput("keep", 1 << 40, 0),)),
    ],
)
def test_impossible_dimensions_of_a_manifest_are_found(dynamic: Dynamic) -> None:
    assert dynamic.problem()


def test_masks_say_which_positions_are_real() -> None:
    lowest = MaskInput("lowest", 4, 3).values(4, 3)
    assert lowest.shape == (1, 1, 1, 4)
    np.testing.assert_array_equal(lowest.reshape(-1), np.array([0, 0, 0, -np.inf], np.float32))
    np.testing.assert_array_equal(MaskInput("keep", 3, 1).values(3, 2).reshape(-1), [1, 1, 0])
    assert MaskInput("share", 0, 0).values(8, 4) == 0.25
