"""Resized images against a float64 product with the matrices of the interpolation."""

from __future__ import annotations

import numpy as np
import pytest
from remainder_cases import TARGETS, compile_kernel, run_kernel, with_threads
from sparsetvm.schedules.x86.remainder.resize import resize_kernel, resize_tables

from sparsetvm.core.layout import PLAIN, Planes
from sparsetvm.core.resampling import Resampling
from sparsetvm.core.target import Target


def matrix(axis: Resampling) -> np.ndarray:
    first, second, weight = axis.neighbours()
    result = np.zeros((axis.size_out, axis.size_in))
    np.add.at(result, (np.arange(axis.size_out), first), 1 - weight)
    np.add.at(result, (np.arange(axis.size_out), second), weight)
    return result


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("planes", [(True, True), (False, True), (True, False), (False, False)])
@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize("sizes", [((3, 5), (6, 10)), ((4, 33), (7, 40)), ((1, 1), (2, 19)), ((9, 40), (5, 30))])
def test_resize_matches_float64(sizes, mode: str, planes: tuple[bool, bool], target: Target) -> None:  # type: ignore[no-untyped-def]
    rows, columns = (
        Resampling(small, large, large / small, "half_pixel", mode) for small, large in zip(*sizes, strict=True)
    )
    assert columns.reach(target.lanes) <= 2 * target.lanes
    shape, result = (2, 3, *sizes[0]), (2, 3, *sizes[1])
    layouts = [Planes(*s, 2, target.lanes) if p else PLAIN for s, p in zip((shape, result), planes, strict=True)]
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    kernel = resize_kernel(*layouts, shape, rows, columns, with_threads(target, 2), "kernel")
    given = [layouts[0].to_physical(x) if planes[0] else x, *resize_tables(rows, columns, target)]
    y = run_kernel(compile_kernel(kernel, target), given, layouts[1].physical_shape(result))
    expected = matrix(rows) @ x.astype(np.float64) @ matrix(columns).T
    physical = layouts[1].to_physical(expected) if planes[1] else expected
    np.testing.assert_allclose(y, physical, atol=1e-6)


def test_reach_is_the_spread_of_the_sources_of_a_vector() -> None:
    assert Resampling(64, 16, 0.25).reach(16) == 62
    assert Resampling(16, 32, 2.0).reach(16) == 9
    assert Resampling(16, 32, 2.0, mode="nearest").reach(16) == 8
