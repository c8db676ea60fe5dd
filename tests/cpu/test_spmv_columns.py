"""The kernel for sparse activations: right for every input, whatever density it was chosen for."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from sparsetvm.schedules.base import matching, template
from test_few_tokens import matrix_vector
from test_matmul_templates import AVX512, configs, run

from sparsetvm.core.target import Target, cpu_flags
from sparsetvm.core.workload import Epilogue, Workload

pytestmark = pytest.mark.skipif("avx512f" not in cpu_flags(), reason="no AVX-512 here")
COLUMNS = template("x86.spmv_columns")
PLAIN = Epilogue()


def workload_for(weight: np.ndarray, n: int, epilogue: Epilogue, threads: int = 1, block: int = 1) -> Workload:
    workload = matrix_vector(weight, n, epilogue, threads)
    kind = "block" if block > 1 else "unstructured"
    pattern = msgspec.structs.replace(workload.pattern, kind=kind, block=(block, 1))
    return msgspec.structs.replace(workload, activation_density=1 / 8, pattern=pattern)


def target_for(threads: int) -> Target:
    return Target(AVX512.kind, AVX512.mcpu, AVX512.isa, threads)


def random_weight(m: int, k: int, density: float, block: int = 1) -> np.ndarray:
    rng = np.random.default_rng(m)
    keep = np.kron(rng.random((m // block, k)) < density, np.ones((block, 1)))
    return (rng.standard_normal((m, k)) * keep).astype(np.float32)


def names(workload: Workload) -> list[str]:
    return [found.name for found in matching(workload, AVX512)]


def test_only_workloads_of_known_density_match() -> None:
    weight = random_weight(64, 64, 0.1)
    assert COLUMNS.name in names(workload_for(weight, 1, PLAIN))
    assert COLUMNS.name not in names(matrix_vector(weight, 1, PLAIN))


def test_few_activations_make_it_the_default_and_many_do_not() -> None:
    sparse = workload_for(random_weight(64, 64, 0.1), 1, PLAIN)
    blocks = workload_for(random_weight(64, 64, 0.1, block=8), 1, PLAIN, block=8)
    assert COLUMNS.preferred(msgspec.structs.replace(blocks, activation_density=3 / 8), AVX512)
    half = msgspec.structs.replace(sparse, activation_density=3 / 8)
    assert COLUMNS.preferred(sparse, AVX512)
    assert not COLUMNS.preferred(half, AVX512)


@pytest.mark.parametrize(
    ("m", "k", "block", "threads"), [(83, 130, 1, 1), (96, 37, 8, 3), (20, 7, 1, 3), (128, 64, 16, 1)]
)
def test_product_matches_float64_for_no_few_and_all_activations(m: int, k: int, block: int, threads: int) -> None:
    rng = np.random.default_rng(m)
    weight = random_weight(m, k, 0.3, block)
    x = rng.standard_normal((3, k)) * (rng.random((3, k)) < np.array([[0.0], [0.1], [1.0]]))
    x, r = x.astype(np.float32), rng.standard_normal((3, m)).astype(np.float32)
    bias = rng.standard_normal(m).astype(np.float32)
    workload = workload_for(weight, 3, Epilogue(bias=True, residual=True, activation="relu"), threads, block)
    want = np.maximum(x @ weight.T.astype(np.float64) + bias + r, 0)
    for config in configs(COLUMNS, workload, target_for(threads)):
        got = run(COLUMNS, workload, config, target_for(threads), weight, bias, x, r)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4, err_msg=str(config))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("block", [1, 4])
def test_what_is_not_finite_reaches_the_rows_that_use_it_and_no_other(value: float, block: int) -> None:
    weight = random_weight(64, 50, 0.2, block)
    x = np.zeros((1, 50), np.float32)
    x[0, [7, 49]] = 1.0, value
    workload = workload_for(weight, 1, PLAIN, block=block)
    for config in configs(COLUMNS, workload, AVX512):
        got = run(COLUMNS, workload, config, AVX512, weight, None, x, None)[0]
        assert np.array_equal(~np.isfinite(got), weight[:, 49] != 0), config
        finite = np.isfinite(got)
        np.testing.assert_allclose(got[finite], weight[finite, 7], rtol=1e-6)


def test_subnormal_activations_count_and_negative_zeros_do_not() -> None:
    weight = np.full((16, 32), 2.0, np.float32)
    weight[:, ::2] = 0
    x = np.full((1, 32), -0.0, np.float32)
    x[0, 3] = 1e-42
    workload = workload_for(weight, 1, PLAIN)
    got = run(COLUMNS, workload, COLUMNS.default(workload, AVX512), AVX512, weight, None, x, None)
    assert np.array_equal(got, np.full((1, 16), 2 * x[0, 3]))


def test_a_column_of_many_blocks_is_listed_whole() -> None:
    """Blocks are listed 16 at a time; here one column has 25, its neighbours none."""
    weight = np.zeros((100, 20), np.float32)
    weight[:, 11] = np.arange(1, 101)
    x = np.ones((1, 20), np.float32)
    workload = workload_for(weight, 1, PLAIN)
    config = COLUMNS.default(workload, AVX512).replace(entries=4)
    assert np.array_equal(run(COLUMNS, workload, config, AVX512, weight, None, x, None)[0], weight[:, 11])


def test_a_dense_weight_is_read_by_columns_too() -> None:
    rng = np.random.default_rng(0)
    gemv = template("x86.gemv_columns")
    for m, k, threads in ((12, 150, 1), (300, 37, 3)):
        weight, bias = rng.standard_normal((m, k)).astype(np.float32), rng.standard_normal(m).astype(np.float32)
        x = rng.standard_normal((3, k)) * (rng.random((3, k)) < np.array([[0.0], [0.2], [1.0]]))
        x, r = x.astype(np.float32), rng.standard_normal((3, m)).astype(np.float32)
        plain = matrix_vector(weight, 3, Epilogue(bias=True, residual=True, activation="relu"), threads)
        pattern = msgspec.structs.replace(plain.pattern, kind="dense")
        workload = msgspec.structs.replace(plain, activation_density=1 / 8, pattern=pattern)
        assert gemv.name in names(workload)
        assert gemv.name not in names(plain)
        want = np.maximum(x @ weight.T.astype(np.float64) + bias + r, 0)
        for config in configs(gemv, workload, target_for(threads)):
            got = run(gemv, workload, config, target_for(threads), weight, bias, x, r)
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4, err_msg=str(config))
