"""CUDA kernel of products of two computed tensors against numpy in float64."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from cuda_remainder_cases import TARGET, needs_nvcc, nvcc_faults, run_remainder
from sparsetvm.schedules.cuda.remainder.batch_matmul import (
    BatchMatmul,
    batch_matmul_kernel,
    batch_matmul_supported,
)

from sparsetvm.core.target import Target
from sparsetvm.errors import SparseTvmError

# So few multiprocessors that tiles are large.
SMALL = Target("cuda", "x86-64-v3", "sm_90", sms=1, shared=227 << 10)
SHAPES = [
    ((1, 1), (1, 1)),
    ((7, 5), (5, 3)),
    ((2, 3, 17, 8), (2, 3, 8, 36)),
    ((3, 31, 64), (64, 64)),  # one B for all
    ((5, 3), (4, 3, 130)),  # one A for all
    ((2, 1, 4, 9), (1, 3, 9, 16)),
    ((2, 1, 3, 4, 8), (1, 5, 3, 8, 12)),
    ((3, 1, 4), (2, 3, 4, 47)),
    ((4, 3, 49, 32), (4, 3, 32, 49)),  # a window of 7 x 7 tokens
    ((4, 3, 49, 49), (4, 3, 49, 32)),
    ((2, 70, 100), (2, 100, 68)),
    ((1, 140, 20), (1, 20, 66)),
]


@pytest.mark.parametrize("target", [TARGET, SMALL], ids=["many", "one"])
@pytest.mark.parametrize(("a_shape", "b_shape"), SHAPES)
def test_product_matches_numpy(a_shape: tuple[int, ...], b_shape: tuple[int, ...], target: Target) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in (a_shape, b_shape))
    b[..., 0, 0] = np.nan
    launch = batch_matmul_kernel(BatchMatmul(a_shape, b_shape), target, "kernel")
    expected = a.astype(np.float64) @ b
    y = run_remainder(launch, [a, b], expected.shape)
    assert np.array_equal(np.isnan(y), np.isnan(expected))
    assert np.nanmax(np.abs(y - expected), initial=0.0) <= 1e-5 * np.nanmax(np.abs(expected), initial=1.0)


def test_heads_have_a_block_for_every_multiprocessor() -> None:
    launch = batch_matmul_kernel(BatchMatmul((12, 128, 64), (12, 64, 128)), TARGET, "kernel")
    assert math.prod(launch.grid) >= TARGET.sms


def test_thousands_of_windows_are_one_block_each() -> None:
    launch = batch_matmul_kernel(BatchMatmul((1024, 4, 49, 32), (1024, 4, 32, 49)), TARGET, "kernel")
    assert launch.grid == (1024 * 4, 1, 1)


def test_axes_that_alternate_too_often_are_refused() -> None:
    product = BatchMatmul((2, 1, 2, 1, 4, 8), (1, 3, 1, 3, 8, 4))
    assert not batch_matmul_supported(product)
    with pytest.raises(SparseTvmError, match="alternate"):
        batch_matmul_kernel(product, TARGET, "kernel")


@needs_nvcc
def test_products_compile_for_sm_90_without_spills(tmp_path: Path) -> None:
    products = [
        BatchMatmul((12, 128, 64), (12, 64, 128)),
        BatchMatmul((64, 3, 49, 49), (64, 3, 49, 32)),
        BatchMatmul((64, 3, 49, 32), (64, 3, 32, 49)),
        BatchMatmul((32, 512, 64), (32, 64, 512)),
        BatchMatmul((32, 513, 63), (32, 63, 511)),
        BatchMatmul((64, 64, 64), (64, 64, 64)),
    ]
    launches = {launch.defines: launch for launch in (batch_matmul_kernel(p, TARGET, "kernel") for p in products)}
    assert len(launches) >= 5
    assert [fault for fault in (nvcc_faults(launch, tmp_path) for launch in launches.values()) if fault] == []
