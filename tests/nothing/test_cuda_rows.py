"""CUDA layer norm and softmax against numpy in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cuda_remainder_cases import TARGET, needs_nvcc, nvcc_faults, run_remainder
from sparsetvm.schedules.cuda.remainder.layer_norm import layer_norm_kernel
from sparsetvm.schedules.cuda.remainder.softmax import Softmax, softmax_kernel, softmax_supported

from sparsetvm.core.layout import PLAIN, Tiled
from sparsetvm.errors import SparseTvmError

_RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("n", [1, 7, 300, 4099])
@pytest.mark.parametrize("lanes", [0, 4, 16])
@pytest.mark.parametrize("centred", [True, False], ids=["layer norm", "rms norm"])
def test_norm_matches_float64(n: int, lanes: int, centred: bool) -> None:
    shape = (2, 5, n) if n < 4000 else (1, 3, n)
    tokens = shape[0] * shape[1]
    layout = Tiled(tokens, n, lanes) if lanes else PLAIN
    # A mean far from zero shows cancellation.
    x = (_RANDOM.standard_normal(shape) + 30).astype(np.float32)
    gamma, beta = (_RANDOM.standard_normal(n).astype(np.float32) for _ in range(2))
    launch = layer_norm_kernel(layout, shape, 1e-5, TARGET, "norm", centred)
    given = layout.to_physical(x) if isinstance(layout, Tiled) else x
    y = run_remainder(launch, [given, gamma, beta], layout.physical_shape(shape))
    assert np.isfinite(y).all()
    y = layout.to_logical(y, shape) if isinstance(layout, Tiled) else y
    exact = x.astype(np.float64)
    if centred:
        exact -= exact.mean(-1, keepdims=True)
    expected = exact / np.sqrt((exact**2).mean(-1, keepdims=True) + 1e-5) * gamma + beta
    assert np.abs(y - expected).max() < 2e-5


def test_layer_norm_spreads_few_tokens_over_the_gpu() -> None:
    few = layer_norm_kernel(Tiled(128, 768, 128), (128, 768), 1e-12, TARGET, "norm")
    many = layer_norm_kernel(Tiled(8192, 768, 8192), (8192, 768), 1e-12, TARGET, "norm")
    assert (few.cluster, few.grid[0]) == (8, 128)
    assert (many.cluster, many.grid[0]) == (1, 1024)


@pytest.mark.parametrize("shape", [(13, 1), (2, 3, 37), (5, 300), (2, 5000)])
def test_softmax_matches_float64(shape: tuple[int, ...]) -> None:
    x = (10 * _RANDOM.standard_normal(shape)).astype(np.float32)
    x[0, ..., 0] = 120.0
    x[-1, ..., -1] = -np.inf if shape[-1] > 1 else 0.0
    y = run_remainder(softmax_kernel(Softmax(shape), TARGET, "softmax"), [x], shape)
    terms = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
    assert np.abs(y - terms / terms.sum(-1, keepdims=True)).max() < 1e-6


@pytest.mark.parametrize("n", [5, 300, 5000])
@pytest.mark.parametrize("mask", [(), (3,), (1, 4, 3), (2, 1, 1), (2, 1, 3), (2, 4, 3)], ids=str)
def test_masked_softmax_matches_float64(mask: tuple[int, ...], n: int) -> None:
    shape = (2, 4, 3, n)
    x = (10 * _RANDOM.standard_normal(shape)).astype(np.float32)
    added = _RANDOM.standard_normal((*mask, n)).astype(np.float32)
    added[..., 1] = np.finfo(np.float32).min  # as a mask would
    y = run_remainder(softmax_kernel(Softmax(shape, 0.25, added.shape), TARGET, "softmax"), [x, added], shape)
    scores = 0.25 * x.astype(np.float64) + added
    terms = np.exp(scores - scores.max(-1, keepdims=True))
    assert np.abs(y - terms / terms.sum(-1, keepdims=True)).max() < 1e-6


def test_softmax_refuses_a_mask_that_alternates_too_often() -> None:
    softmax = Softmax((2, 2, 2, 2, 8), 1.0, (2, 1, 2, 1, 8))
    assert not softmax_supported(softmax)
    with pytest.raises(SparseTvmError, match="alternate"):
        softmax_kernel(softmax, TARGET, "softmax")


def test_softmax_of_a_nan_is_nan_in_its_row_only() -> None:
    x = _RANDOM.standard_normal((3, 40)).astype(np.float32)
    x[1, 17] = np.nan
    y = run_remainder(softmax_kernel(Softmax(x.shape), TARGET, "softmax"), [x], x.shape)
    assert np.isnan(y[1]).all()
    assert np.isfinite(y[::2]).all()


@needs_nvcc
def test_rows_compile_for_sm_90_without_spills(tmp_path: Path) -> None:
    for launch in (
        layer_norm_kernel(Tiled(128, 768, 128), (128, 768), 1e-12, TARGET, "norm"),
        layer_norm_kernel(PLAIN, (128, 4096), 1e-5, TARGET, "norm"),
        layer_norm_kernel(Tiled(64, 768, 64), (64, 768), 1e-6, TARGET, "norm", centred=False),
        softmax_kernel(Softmax((12, 128, 128)), TARGET, "softmax"),
        softmax_kernel(Softmax((3, 50000)), TARGET, "softmax"),
        softmax_kernel(Softmax((2, 12, 64, 64), 0.125, (2, 1, 1, 64)), TARGET, "softmax"),
        softmax_kernel(Softmax((8, 5000), 0.125, (5000,)), TARGET, "softmax"),
    ):
        assert nvcc_faults(launch, tmp_path) == ""
