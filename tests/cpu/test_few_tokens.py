"""Kernels of few tokens on uneven patterns, odd sizes and several threads."""

from __future__ import annotations

import numpy as np
import pytest
from sparsetvm.schedules.base import matching
from test_matmul_templates import AVX512, TARGETS, check_matmul, run

from sparsetvm.core.layout import PLAIN
from sparsetvm.core.pattern import PatternSummary
from sparsetvm.core.target import Target, cpu_flags
from sparsetvm.core.workload import Epilogue, Workload

RELU = Epilogue(bias=True, residual=True, activation="relu")


def matrix_vector(weight: np.ndarray, n: int, epilogue: Epilogue, threads: int = 1) -> Workload:
    rows = (weight != 0).sum(1)
    density, imbalance = float((weight != 0).mean()), float(rows.max() / max(rows.mean(), 1e-9))
    summary = PatternSummary("unstructured", (1, 1), density, imbalance, int((rows == 0).sum()), "0")
    m, k = weight.shape
    return Workload("matmul", m, k, n, PLAIN, PLAIN, epilogue, summary, threads=threads)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("threads", [1, 3])
def test_uneven_rows_match_float64(target: Target, threads: int) -> None:
    rng = np.random.default_rng(3)
    m, k = 83, 130
    weight = rng.standard_normal((m, k)).astype(np.float32)
    weight[rng.random((m, k)) >= rng.permutation(np.linspace(-0.3, 0.6, m))[:, None]] = 0
    x, r = (rng.standard_normal((1, size)).astype(np.float32) for size in (k, m))
    bias = rng.standard_normal(m).astype(np.float32)
    want = np.maximum(x @ weight.T.astype(np.float64) + bias + r, 0)
    target = Target(target.kind, target.mcpu, target.isa, threads)
    workload = matrix_vector(weight, 1, RELU, threads)
    for template in matching(workload, target):
        for config in template.space(workload, target):
            got = run(template, workload, config, target, weight, bias, x, r)
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4, err_msg=str(config))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("m", "k"), [(1, 1), (1, 40), (16, 16), (5, 100), (33, 3)])
def test_small_matrices_match_float64(target: Target, m: int, k: int) -> None:
    check_matmul(target, 1, m, k, Epilogue(bias=True), 0.7, seed=m)


@pytest.mark.skipif("avx512f" not in cpu_flags(), reason="no AVX-512 here")
@pytest.mark.parametrize("n", [2, 4])
def test_sorted_rows_of_several_tokens_match_float64(n: int) -> None:
    rng = np.random.default_rng(n)
    weight = rng.standard_normal((45, 70)).astype(np.float32)
    weight[rng.random(weight.shape) >= rng.random((45, 1)) ** 3] = 0
    x, r = (rng.standard_normal((n, size)).astype(np.float32) for size in (70, 45))
    want = np.maximum(x @ weight.T.astype(np.float64) + r, 0)
    workload = matrix_vector(weight, n, Epilogue(residual=True, activation="relu"))
    for template in matching(workload, AVX512):
        for config in template.space(workload, AVX512):
            got = run(template, workload, config, AVX512, weight, None, x, r)
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4, err_msg=str(config))


@pytest.mark.parametrize("target", TARGETS)
def test_nan_of_a_used_column_reaches_its_rows(target: Target) -> None:
    weight = np.zeros((20, 40), np.float32)
    weight[:, 0], weight[3, 37] = 1.0, 2.0
    x = np.ones((1, 40), np.float32)
    x[0, 37] = np.nan
    workload = matrix_vector(weight, 1, Epilogue(activation="relu"))
    for template in matching(workload, target):
        got = run(template, workload, template.default(workload, target), target, weight, None, x, None)
        assert np.isnan(got[0, 3]), template.name
