"""The k-winners kernel against a sort, its ties as ONNX has them for TopK."""

from __future__ import annotations

import numpy as np
import pytest
from k_winners_cases import winners
from remainder_cases import TARGETS, compile_kernel, run_kernel, with_threads
from sparsetvm.schedules.x86.remainder.k_winners import k_winners_kernel

from sparsetvm.core.target import Target


def check(x: np.ndarray, k: int, ties: str, target: Target, threads: int = 1) -> None:
    kernel = compile_kernel(k_winners_kernel(x.shape, k, ties, with_threads(target, threads), "kernel"), target)
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
