"""Products of two computed tensors against numpy float64."""

from __future__ import annotations

import numpy as np
import pytest
from remainder_cases import TARGETS, compile_kernel, run_kernel, with_threads
from sparsetvm.schedules.operators import BatchMatmul
from sparsetvm.schedules.x86.remainder.batch_matmul import batch_matmul_kernel

from sparsetvm.core.target import Target

SHAPES = [
    ((1, 1), (1, 1)),
    ((7, 5), (5, 3)),
    ((2, 3, 17, 8), (2, 3, 8, 33)),
    ((3, 31, 64), (64, 64)),
    ((5, 3), (4, 3, 130)),
    ((2, 1, 4, 9), (1, 3, 9, 16)),
    ((3, 1, 4), (2, 3, 4, 47)),
]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("a_shape", "b_shape"), SHAPES)
def test_product_matches_numpy(
    a_shape: tuple[int, ...], b_shape: tuple[int, ...], target: Target, threads: int
) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in (a_shape, b_shape))
    product = BatchMatmul(a_shape, b_shape)
    kernel = compile_kernel(batch_matmul_kernel(product, with_threads(target, threads), "kernel"), target)
    expected = a.astype(np.float64) @ b
    y = run_kernel(kernel, [a, b], expected.shape)
    assert np.abs(y - expected).max() <= 1e-5 * np.abs(expected).max()
    b[..., 0, 0] = np.nan
    poisoned = a.astype(np.float64) @ b
    assert np.array_equal(np.isnan(run_kernel(kernel, [a, b], expected.shape)), np.isnan(poisoned))
