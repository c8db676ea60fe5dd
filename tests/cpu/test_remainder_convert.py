"""Layout conversions against the numpy definitions in core.layout."""

from __future__ import annotations

import numpy as np
import pytest
from remainder_cases import TARGETS, compile_kernel, run_kernel, with_threads
from sparsetvm.schedules.x86.remainder.convert import convert_kernel

from sparsetvm.core.layout import PLAIN, Planes, Tiled
from sparsetvm.core.target import Target
from sparsetvm.errors import SparseTvmError

_RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (7, 13), (33, 40)])
def test_convert_plain_to_tiled_and_back(rows: int, cols: int, target: Target) -> None:
    tiled = Tiled(rows, cols, target.lanes)
    x = _RANDOM.standard_normal((rows, cols)).astype(np.float32)
    there = compile_kernel(convert_kernel(PLAIN, tiled, x.shape, with_threads(target, 2), "there"), target)
    back = compile_kernel(convert_kernel(tiled, PLAIN, x.shape, target, "back"), target)
    packed = run_kernel(there, [x], tiled.physical_shape(x.shape))
    assert np.array_equal(packed, tiled.to_physical(x))
    assert np.array_equal(run_kernel(back, [packed], x.shape), x)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("rows", "cols"), [(7, 13), (33, 4)])
def test_convert_transposed_plain_to_tiled_and_back(rows: int, cols: int, target: Target) -> None:
    tiled = Tiled(rows, cols, target.lanes)
    x = _RANDOM.standard_normal((cols, rows)).astype(np.float32)
    there = compile_kernel(convert_kernel(PLAIN, tiled, x.shape, target, "there", transposed=True), target)
    back = compile_kernel(convert_kernel(tiled, PLAIN, x.shape, target, "back", transposed=True), target)
    packed = run_kernel(there, [x], tiled.physical_shape(x.shape))
    assert np.array_equal(packed, tiled.to_physical(np.ascontiguousarray(x.T)))
    assert np.array_equal(run_kernel(back, [packed], x.shape), x)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("size", "pad"), [((7, 7), 1), ((5, 13), 0), ((4, 16), 20), ((3, 37), 3)])
def test_convert_plain_to_planes_to_planes_to_plain(size: tuple[int, int], pad: int, target: Target) -> None:
    x = _RANDOM.standard_normal((2, 3, *size)).astype(np.float32)
    first = Planes(2, 3, *size, pad, target.lanes)
    second = Planes(2, 3, *size, pad // 2 + 1, target.lanes)
    threads = with_threads(target, 1 + pad % 2)
    packed = x
    for source, destination in ((PLAIN, first), (first, second)):
        kernel = compile_kernel(convert_kernel(source, destination, x.shape, threads, "there"), target)
        packed = run_kernel(kernel, [packed], destination.physical_shape(x.shape))
        assert np.array_equal(packed, destination.to_physical(x))
    kernel = compile_kernel(convert_kernel(second, PLAIN, x.shape, threads, "back"), target)
    assert np.array_equal(run_kernel(kernel, [packed], x.shape), x)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("phases", [(2, 2), (1, 2), (3, 3), (6, 5)])
@pytest.mark.parametrize("size", [(7, 7), (12, 70)])
def test_convert_splits_phases(size: tuple[int, int], phases: tuple[int, int], target: Target) -> None:
    x = _RANDOM.standard_normal((2, 2, *size)).astype(np.float32)
    height, width = (-(-n // s) for n, s in zip(size, phases, strict=True))
    split = Planes(2, 2, height, width, 1, target.lanes, phases)
    whole = Planes(2, 2, *size, 2, target.lanes)
    for source in (PLAIN, whole):
        kernel = compile_kernel(convert_kernel(source, split, x.shape, target, "split"), target)
        packed = x if source is PLAIN else whole.to_physical(x)
        assert np.array_equal(run_kernel(kernel, [packed], split.physical_shape(x.shape)), split.to_physical(x))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("shift", [(-1, -1), (-3, 2), (2, -20)])
@pytest.mark.parametrize("phases", [(1, 1), (2, 2), (5, 5)])
def test_convert_shifts_the_image(phases: tuple[int, int], shift: tuple[int, int], target: Target) -> None:
    x = _RANDOM.standard_normal((1, 2, 9, 19)).astype(np.float32)
    split = Planes(1, 2, 6, 11, 1, target.lanes, phases)
    rows, columns = split.image_shape()
    moved = np.zeros((1, 2, rows, columns), np.float32)
    for row in range(rows):
        for column in range(columns):
            source = (row + shift[0], column + shift[1])
            if 0 <= source[0] < 9 and 0 <= source[1] < 19:
                moved[..., row, column] = x[..., source[0], source[1]]
    kernel = compile_kernel(convert_kernel(PLAIN, split, x.shape, target, "split", shift=shift), target)
    assert np.array_equal(run_kernel(kernel, [x], split.physical_shape(x.shape)), split.to_physical(moved))


def test_convert_names_the_layouts_when_there_is_no_kernel() -> None:
    target = TARGETS[0].values[0]
    with pytest.raises(SparseTvmError, match="Tiled to Planes"):
        convert_kernel(Tiled(4, 4, 16), Planes(1, 1, 4, 4, 1, 16), (4, 4), target, "none")
