"""Errors of a compiled model over several inputs."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sparsetvm.runtime.difference import Difference


def over(*pairs: tuple[list[float], list[float]]) -> Difference:
    found = Difference()
    for ours, theirs in pairs:
        found.add(np.array(ours, np.float32), np.array(theirs, np.float32))
    return found


def test_error_of_one_input_is_relative_to_its_norm() -> None:
    found = over(([3.0, 4.5], [3.0, 4.0]))
    assert found.relative == pytest.approx(0.1)
    assert found.largest == 0.5


def test_output_that_cancels_is_judged_by_what_it_usually_is() -> None:
    found = over(([0.1, 0.1], [0.1, 0.1]), ([1e-3 + 5e-8, 0.0], [1e-3, 0.0]))
    assert found.relative < 1e-6


def test_wrong_input_among_larger_ones_is_still_wrong() -> None:
    small = over(([1.0] * 4, [1.0] * 4), ([0.2] * 4, [0.1] * 4))
    assert small.relative > 0.1


def test_wrong_values_are_not_hidden_by_zeros_of_other_inputs() -> None:
    assert over(([0.0, 0.0], [0.0, 0.0]), ([1.1, 0.0], [1.0, 0.0])).relative == pytest.approx(0.1)


def test_inputs_of_other_sizes_count_by_element() -> None:
    found = over(([1.0], [1.0]), ([1.0] * 99 + [2.0], [1.0] * 100))
    assert found.relative == pytest.approx(0.1)


def test_zero_reference_leaves_the_absolute_error() -> None:
    assert over(([0.25], [0.0])).relative == 0.25


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_nan_or_infinity_on_one_side_fails_every_tolerance(wrong: float) -> None:
    found = over(([1.0], [1.0]), ([wrong], [1.0]))
    assert found.relative == found.largest == math.inf


def test_equal_infinities_and_nan_are_no_error() -> None:
    found = over(([math.inf, math.nan, 1.0], [math.inf, math.nan, 1.0]))
    assert found.relative == found.largest == 0.0


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 1.0])
def test_only_a_reference_of_zeros_says_nothing(value: float) -> None:
    difference = Difference()
    difference.add(np.zeros(4), np.zeros(4))
    assert difference.says_nothing
    difference.add(np.full(4, value), np.full(4, value))
    assert not difference.says_nothing
