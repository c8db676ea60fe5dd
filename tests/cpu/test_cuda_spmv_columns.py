"""cuda.spmv_columns computes what numpy computes in float64, whatever X holds (in the emulator, so without a GPU)."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from cuda_cases import H100, check_product, launch, product, sparse
from sparsetvm.schedules.base import matching, template

from sparsetvm.core.config import Config
from sparsetvm.core.pattern import PatternSummary
from sparsetvm.core.workload import Epilogue, Workload
from sparsetvm.search.candidates import candidates_of

TEMPLATE = template("cuda.spmv_columns")
EPILOGUES = [Epilogue(), Epilogue(bias=True, residual=True, activation="gelu")]


def config(rows: int = 8, threads: int = 256) -> Config:
    return Config.of(TEMPLATE.name, rows=rows, threads=threads)


def known(n: int, weight: np.ndarray, epilogue: Epilogue = EPILOGUES[0], density: float = 0.125) -> Workload:
    """A product whose activation density is known."""
    workload = product(n, *weight.shape, epilogue, weight, plain=True)
    return msgspec.structs.replace(workload, activation_density=density)


def square(size: int, density: float, active: float) -> Workload:
    pattern = PatternSummary("unstructured", (1, 1), density, 1.0, 0, "0")
    workload = known(1, np.ones((2, 2), np.float32), density=active)
    return msgspec.structs.replace(workload, m=size, k=size, pattern=pattern)


@pytest.mark.parametrize("n", [1, 4])
def test_few_tokens_match_float64_for_any_shape(n: int) -> None:
    rng = np.random.default_rng(n)
    for number, rows in enumerate((8, 16, 32, 64)):
        m, k = (int(v) for v in rng.integers(1, 300, 2))
        weight = sparse(rng, (m, k), float(rng.uniform(0.02, 0.6)))
        weight[0, 0] = 1
        workload = known(n, weight, EPILOGUES[number % 2])
        assert TEMPLATE.matches(workload, H100)
        check_product(TEMPLATE, workload, config(rows, (128, 256, 512, 128)[number]), weight, rng)


def test_columns_beyond_one_round_and_columns_with_many_weights_are_all_read() -> None:
    rng = np.random.default_rng(0)
    weight = sparse(rng, (70, 2500), 0.05)
    weight[:, 2400] = 1.5
    workload = known(1, weight)
    for few in (0.1, 1.0):  # of X are not zero; whole numbers, so that any factor that goes missing shows
        x = (rng.integers(-3, 4, (1, 2500)) * (rng.random((1, 2500)) < few)).astype(np.float32)
        x[0, 2400] = 1
        whole = np.rint(2 * weight).astype(np.float32)
        got = launch(TEMPLATE, workload, config(64), whole, None, x, None)
        np.testing.assert_array_equal(got.reshape(1, 70), x @ whole.T)


@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_no_activation_leaves_bias_and_residual(epilogue: Epilogue) -> None:
    rng = np.random.default_rng(1)
    weight = sparse(rng, (50, 90), 0.2)
    bias, zero = np.ones(50, np.float32), np.zeros((1, 90), np.float32)
    residual = np.ones((1, 50), np.float32) if epilogue.residual else None
    made = known(1, weight, epilogue)
    got = launch(TEMPLATE, made, config(32), weight, bias if epilogue.bias else None, zero, residual)
    np.testing.assert_allclose(got, 1.9545 if epilogue.bias else 0.0, atol=1e-4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_reaches_the_rows_that_use_its_column(value: float) -> None:
    rng = np.random.default_rng(2)
    weight = sparse(rng, (64, 90), 0.2)
    x = (rng.standard_normal((1, 90)) * (rng.random((1, 90)) < 0.2)).astype(np.float32)
    x[0, 7] = value
    got = launch(TEMPLATE, known(1, weight), config(16), weight, None, x, None).reshape(-1)
    np.testing.assert_array_equal(~np.isfinite(got), weight[:, 7] != 0)


def test_subnormal_and_negative_zero_activations_are_what_they_are() -> None:
    weight = np.full((8, 4), 2.0, np.float32)
    x = np.array([[1e-40, -0.0, 0.0, -1e-45]], np.float32)
    got = launch(TEMPLATE, known(1, weight), config(), weight, None, x, None)
    np.testing.assert_array_equal(got.reshape(1, 8), x @ weight.T)


def test_sums_depend_on_the_activations_alone() -> None:
    """The same bits at every run, though threads are free to run in any order (the emulator runs them in two)."""
    rng = np.random.default_rng(3)
    weight = sparse(rng, (40, 700), 0.3)
    x = (rng.standard_normal((1, 700)) * (rng.random((1, 700)) < 0.5)).astype(np.float32)
    first, second = (launch(TEMPLATE, known(1, weight), config(32), weight, None, x, None) for _ in range(2))
    np.testing.assert_array_equal(first.view(np.uint32), second.view(np.uint32))


def test_template_needs_a_known_density_and_few_plain_tokens() -> None:
    weight = sparse(np.random.default_rng(0), (16, 16), 0.3)
    assert TEMPLATE.name in [found.name for found in matching(known(4, weight), H100)]
    assert not TEMPLATE.matches(product(1, 16, 16, EPILOGUES[0], weight, plain=True), H100)
    assert not TEMPLATE.matches(known(5, weight), H100)
    tiled = msgspec.structs.replace(product(4, 16, 16, EPILOGUES[0], weight), activation_density=0.1)
    assert not TEMPLATE.matches(tiled, H100)


def test_default_is_chosen_where_reading_all_weights_takes_long() -> None:
    """By estimate: 2 us are what any launch takes, so weights that come from L2 in less are read whole."""
    few, many = square(2048, 0.05, 0.125), square(16384, 0.05, 0.125)
    assert candidates_of(few, H100).default.template == "cuda.spmv"
    assert candidates_of(many, H100).default.template == TEMPLATE.name
    assert candidates_of(square(16384, 0.05, 0.75), H100).default.template == "cuda.spmv"
    for workload in (few, many):
        assert TEMPLATE.space(workload, H100).contains(TEMPLATE.default(workload, H100))


def test_every_config_fits_a_multiprocessor() -> None:
    weight = sparse(np.random.default_rng(0), (16, 16), 0.3)
    workload = known(1, weight)
    for chosen in TEMPLATE.space(workload, H100):
        made = TEMPLATE.kernel(workload, chosen, TEMPLATE.pack(weight, None, workload, chosen, H100), H100, "kernel")
        assert made.shared <= H100.shared, chosen
