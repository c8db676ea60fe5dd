"""CUDA layout conversions against the numpy definitions in core.layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cuda_remainder_cases import TARGET, needs_nvcc, nvcc_faults, run_remainder
from sparsetvm.schedules.cuda.remainder.convert import convert_kernel

from sparsetvm.core.layout import PLAIN, HalfTiled, Planes, Tiled
from sparsetvm.errors import SparseTvmError

_RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize(("rows", "cols", "lanes"), [(1, 1, 4), (37, 45, 40), (33, 40, 4)])
@pytest.mark.parametrize("transposed", [False, True])
def test_convert_plain_to_tiled_and_back(rows: int, cols: int, lanes: int, transposed: bool) -> None:
    tiled = Tiled(rows, cols, lanes)
    matrix = _RANDOM.standard_normal((rows, cols)).astype(np.float32)
    x = np.ascontiguousarray(matrix.T) if transposed else matrix
    there = convert_kernel(PLAIN, tiled, x.shape, TARGET, "there", transposed=transposed)
    back = convert_kernel(tiled, PLAIN, x.shape, TARGET, "back", transposed=transposed)
    packed = run_remainder(there, [x], tiled.physical_shape(x.shape))
    assert np.array_equal(packed, tiled.to_physical(matrix))
    assert np.array_equal(run_remainder(back, [packed], x.shape), x)


@pytest.mark.parametrize(("rows", "cols", "lanes"), [(37, 45, 40), (33, 40, 8)])
def test_convert_rounds_to_half_tiled_from_plain_and_from_tiled(rows: int, cols: int, lanes: int) -> None:
    tiled, half = Tiled(rows, cols, lanes), HalfTiled(rows, cols, lanes)
    matrix = _RANDOM.standard_normal((rows, cols)).astype(np.float32)
    for source, given in ((PLAIN, matrix), (tiled, tiled.to_physical(matrix))):
        launch = convert_kernel(source, half, matrix.shape, TARGET, "round")
        packed = run_remainder(launch, [given], half.physical_shape(matrix.shape), np.float16)
        assert np.array_equal(packed, half.to_physical(matrix.astype(np.float16)))


@pytest.mark.parametrize(("size", "pad"), [((7, 7), 1), ((5, 13), 0), ((3, 37), 3)])
def test_convert_plain_to_planes_to_planes_to_plain(size: tuple[int, int], pad: int) -> None:
    x = _RANDOM.standard_normal((2, 3, *size)).astype(np.float32)
    first, second = Planes(2, 3, *size, pad, 4), Planes(2, 3, *size, pad // 2 + 1, 4)
    packed = x
    for source, destination in ((PLAIN, first), (first, second)):
        launch = convert_kernel(source, destination, x.shape, TARGET, "there")
        packed = run_remainder(launch, [packed], destination.physical_shape(x.shape))
        assert np.array_equal(packed, destination.to_physical(x))
    launch = convert_kernel(second, PLAIN, x.shape, TARGET, "back")
    assert np.array_equal(run_remainder(launch, [packed], x.shape), x)


@pytest.mark.parametrize("phases", [(2, 2), (1, 2), (3, 5)])
@pytest.mark.parametrize("size", [(7, 7), (12, 35)])
def test_convert_splits_phases(size: tuple[int, int], phases: tuple[int, int]) -> None:
    x = _RANDOM.standard_normal((2, 3, *size)).astype(np.float32)
    height, width = (-(-length // phase) for length, phase in zip(size, phases, strict=True))
    planes = Planes(2, 3, height, width, 2, 4, phases)
    for source in (PLAIN, Planes(2, 3, *size, 1, 4)):
        given = x if source == PLAIN else source.to_physical(x)
        launch = convert_kernel(source, planes, x.shape, TARGET, "split")
        assert np.array_equal(run_remainder(launch, [given], planes.physical_shape(x.shape)), planes.to_physical(x))


def test_convert_shifts_pixels() -> None:
    x = _RANDOM.standard_normal((1, 2, 6, 5)).astype(np.float32)
    planes = Planes(1, 2, 4, 3, 1, 4, (2, 2))
    shifted = np.zeros((1, 2, 8, 6), np.float32)
    shifted[:, :, :5, 2:] = x[:, :, 1:, :4]
    launch = convert_kernel(PLAIN, planes, x.shape, TARGET, "shift", shift=(1, -2))
    assert np.array_equal(run_remainder(launch, [x], planes.physical_shape(x.shape)), planes.to_physical(shifted))


def test_convert_refuses_tiles_to_planes_and_float16_to_others() -> None:
    for source, destination in (
        (Tiled(4, 4, 4), Planes(1, 1, 2, 2, 0, 4)), (HalfTiled(4, 4, 8), Tiled(4, 4, 8)), (HalfTiled(4, 4, 8), PLAIN),
    ):  # fmt: skip
        with pytest.raises(SparseTvmError, match="no conversion"):
            convert_kernel(source, destination, (1, 1, 2, 2), TARGET, "none")


@needs_nvcc
def test_convert_compiles_for_sm_90_without_spills(tmp_path: Path) -> None:
    assert nvcc_faults(convert_kernel(PLAIN, Tiled(4, 4, 4), (4, 4), TARGET, "others"), tmp_path) == ""
    assert nvcc_faults(convert_kernel(PLAIN, HalfTiled(4, 4, 8), (4, 4), TARGET, "half"), tmp_path) == ""
    planes = Planes(1, 3, 2, 2, 1, 4, (2, 2))
    assert nvcc_faults(convert_kernel(PLAIN, planes, (1, 3, 4, 4), TARGET, "planes"), tmp_path) == ""
