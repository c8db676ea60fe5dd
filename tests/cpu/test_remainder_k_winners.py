"""The k-winners kernel against a sort, its ties as ONNX has them for TopK."""

from __future__ import annotations

import numpy as np
import pytest
from k_winners_cases import winners
from remainder_cases import TARGETS, compile_kernel, run_kernel, with_threads
from sparsetvm.schedules.x86.remainder.k_winners import k_winners_kernel

from sparsetvm.core.layout import PLAIN, AnyLayout, Planes
from sparsetvm.core.target import Target


def check(x: np.ndarray, k: int, ties: str, target: Target, threads: int = 1) -> None:
    check_all([x], k, ties, target, threads)


def check_all(xs: list[np.ndarray], k: int, ties: str, target: Target, threads: int = 1) -> None:
    kernel = compile_kernel(k_winners_kernel(xs[0].shape, k, ties, with_threads(target, threads), "kernel"), target)
    for x in xs:
        np.testing.assert_array_equal(run_kernel(kernel, [x], x.shape), winners(x, k, ties))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("ties", ["first", "all"])
@pytest.mark.parametrize(("shape", "k"), [((1, 1), 1), ((3, 7), 2), ((2, 48), 47), ((4, 150), 18), ((50,), 50)])
def test_k_largest_of_every_row_stay(shape: tuple[int, ...], k: int, ties: str, target: Target) -> None:
    check(np.random.default_rng(k).standard_normal(shape).astype(np.float32), k, ties, target, threads=2)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("ties", ["first", "all"])
def test_ties_are_kept_as_asked(ties: str, target: Target) -> None:
    x = np.random.default_rng(0).integers(-2, 3, (6, 45)).astype(np.float32)
    x[0], x[1] = 0, -1
    x[2, ::2] = -0.0
    check(x, 11, ties, target)


@pytest.mark.parametrize("target", TARGETS)
def test_extremes_keep_their_order(target: Target) -> None:
    tiny, huge = np.float32(1e-45), np.float32(3.4e38)
    x = np.array([[-np.inf, -huge, -tiny, 0.0, tiny, 1.0, huge, np.inf, -1.0]], np.float32)
    for k in (1, 2, 4, 9):
        check(x, k, "first", target)


@pytest.mark.parametrize("target", TARGETS)
def test_nan_of_either_sign_wins_and_stays(target: Target) -> None:
    x = np.arange(20, dtype=np.float32)[None]
    x[0, 3], x[0, 9] = np.nan, np.copysign(np.float32(np.nan), np.float32(-1))
    check(x, 4, "first", target)


def long_rows(n: int) -> list[np.ndarray]:
    """Rows that a search by sample finds easy, hard and impossible."""
    rng = np.random.default_rng(0)
    normal = rng.standard_normal((2, n)).astype(np.float32)
    sorted_, cut, coarse = np.sort(normal), np.maximum(normal, 1.5), np.round(4 * normal) / 4
    relu, zeros, equal = np.maximum(normal, 0), np.zeros_like(normal), np.full_like(normal, -3.0)
    hidden = -np.abs(normal)
    hidden[:, 3 :: n // 40] *= -1  # large values where the sample does not look
    infinite, nan = normal.copy(), normal.copy()
    infinite[0, ::3], infinite[1, ::5] = np.inf, -np.inf
    nan[0, ::3], nan[1, ::17] = np.nan, np.nan
    tiny = (normal * 1e-39).astype(np.float32)
    return [normal, sorted_, sorted_[:, ::-1].copy(), cut, coarse, relu, zeros, equal, hidden, infinite, nan, tiny]


@pytest.mark.parametrize("ties", ["first", "all"])
@pytest.mark.parametrize(("n", "k"), [(512, 1), (700, 70), (1500, 150), (1500, 1499), (4099, 4099)])
@pytest.mark.parametrize("target", TARGETS[:1])
def test_long_rows_of_any_kind_keep_the_same_values(n: int, k: int, ties: str, target: Target) -> None:
    check_all(long_rows(n), k, ties, target)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("sides", ["both", "in", "out"])
def test_images_keep_the_winners_of_all_their_planes(sides: str, padding: int, target: Target) -> None:
    planes = Planes(2, 5, 14, 14, padding, target.lanes)
    source, out = (planes if sides in ("both", side) else PLAIN for side in ("in", "out"))
    shape, k = (2, 5, 14, 14), 98
    kernel_of = k_winners_kernel(shape, k, "first", target, "kernel", axis=1, layouts=(source, out))
    kernel = compile_kernel(kernel_of, target)
    for row in long_rows(980):
        x = np.nan_to_num(row, nan=3.0).reshape(shape)
        expected = winners(x.reshape(2, -1), k, "first").reshape(shape)
        found = run_kernel(kernel, [physical(x, source)], out.physical_shape(shape))
        np.testing.assert_array_equal(found, physical(expected, out))


def physical(x: np.ndarray, layout: AnyLayout) -> np.ndarray:
    return layout.to_physical(x) if isinstance(layout, Planes) else x
