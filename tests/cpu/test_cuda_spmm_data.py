"""cuda.spmm_data computes what numpy computes in float64 (in the emulator, so without a GPU)."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_cases import (
    H100,
    RELU,
    check_convolution,
    check_product,
    check_products_of_any_shape,
    convolution,
    examples,
    product,
    sparse,
)
from hypothesis import given
from hypothesis import strategies as st
from sparsetvm.schedules.base import template
from sparsetvm.schedules.cuda.spmm_data_model import rank

from sparsetvm.core.config import Config
from sparsetvm.core.workload import ConvGeometry, Epilogue
from sparsetvm.search.candidates import candidates_of, validator

TEMPLATE = template("cuda.spmm_data")


def config(
    nt: int, c: int, rows: int, warps: int, chunk: int, stages: int = 2, parts: int = 1, batch: int = 2
) -> Config:
    return Config.of(
        TEMPLATE.name, nt=nt, c=c, rows=rows, warps=warps, chunk=chunk, stages=stages, parts=parts, batch=batch
    )


PRODUCTS = [
    config(32, 4, 1, 4, 1024),
    config(32, 2, 2, 4, 16),
    config(64, 4, 4, 4, 64, stages=4),
    config(128, 4, 8, 4, 8, stages=3, batch=4),
    config(32, 4, 2, 4, 16, parts=4),
    config(64, 2, 1, 8, 32, parts=2),
]


@pytest.mark.parametrize("chosen", PRODUCTS, ids=lambda c: "_".join(str(v) for _, v in c.knobs))
def test_product_matches_float64_for_any_shape(chosen: Config) -> None:
    check_products_of_any_shape(TEMPLATE, chosen, 12)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("activation", ["none", "relu", "clip", "gelu", "gelu_tanh", "sigmoid", "silu", "hard_swish"])
def test_product_matches_float64_for_every_epilogue(activation: str, residual: bool) -> None:
    rng = np.random.default_rng(0)
    weight = sparse(rng, (37, 53), 0.15)
    epilogue = Epilogue(bias=not residual, residual=residual, activation=activation, low=-0.5, high=1.5)
    check_product(TEMPLATE, product(33, 37, 53, epilogue, weight), PRODUCTS[1], weight, rng)


def test_cluster_adds_the_residual_once() -> None:
    rng = np.random.default_rng(0)
    weight = sparse(rng, (37, 90), 0.15)
    check_product(TEMPLATE, product(33, 37, 90, Epilogue(bias=True, residual=True), weight), PRODUCTS[4], weight, rng)


CONVS = {
    "1x1": ConvGeometry(6, 7, 9, (1, 1)),
    "3x3": ConvGeometry(5, 7, 7, (3, 3), pads=(1, 1, 1, 1)),
    "3x3 of several tiles": ConvGeometry(5, 12, 15, (3, 3), pads=(1, 1, 1, 1)),
    "3x3 stride 2": ConvGeometry(5, 9, 8, (3, 3), (2, 2), (1, 1, 1, 1)),
    "1x1 stride 2": ConvGeometry(5, 9, 8, (1, 1), (2, 2)),
    "5x5 valid": ConvGeometry(3, 12, 12, (5, 5)),
    "3x3 dilated": ConvGeometry(3, 10, 11, (3, 3), pads=(2, 2, 2, 2), dilation=(2, 2)),
    "3x2 uneven pads": ConvGeometry(3, 8, 6, (3, 2), (1, 2), (0, 1, 2, 0)),
    "groups": ConvGeometry(6, 7, 7, (3, 3), pads=(1, 1, 1, 1), groups=2),
    "1x1 groups": ConvGeometry(9, 7, 7, (1, 1), groups=3),
    "depthwise": ConvGeometry(12, 7, 7, (3, 3), pads=(1, 1, 1, 1), groups=12),
    "7x7 stride 2": ConvGeometry(3, 20, 20, (7, 7), (2, 2), (3, 3, 3, 3)),
}
# Windows need c = nt / 32; for rows of X c is at least that.
CONV_CONFIGS = [config(64, 4, 2, 4, 2), config(128, 4, 1, 4, 4, stages=3), config(32, 4, 2, 4, 1, parts=2)]


@pytest.mark.parametrize("name", CONVS)
def test_convolution_matches_float64_and_writes_zeros_around_it(name: str) -> None:
    conv, m = CONVS[name], 12
    rng = np.random.default_rng(1)
    weight = sparse(rng, (m, conv.in_channels // conv.groups * conv.kernel[0] * conv.kernel[1]), 0.3)
    for chosen, epilogue in zip(CONV_CONFIGS, (RELU, Epilogue(residual=True, activation="silu"), RELU), strict=True):
        check_convolution(TEMPLATE, convolution(conv, m, 2, epilogue, weight), chosen, weight, rng)


@examples(12)
@given(
    st.integers(1, 5), st.tuples(st.integers(4, 13), st.integers(4, 13)),
    st.tuples(st.integers(1, 4), st.integers(1, 4)), st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(*[st.integers(0, 2)] * 4), st.integers(0, 99),
)  # fmt: skip
def test_convolution_matches_float64_for_any_geometry(
    channels: int, size: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int],
    pads: tuple[int, int, int, int], seed: int,
) -> None:  # fmt: skip
    conv = ConvGeometry(channels, *size, kernel, stride, pads)
    rng = np.random.default_rng(seed)
    weight = sparse(rng, (7, channels * kernel[0] * kernel[1]), 0.4)
    workload = convolution(conv, 7, 1, RELU, weight)
    if TEMPLATE.matches(workload, H100):
        check_convolution(TEMPLATE, workload, CONV_CONFIGS[0], weight, rng)


def test_only_records_of_clusters_are_out_of_date() -> None:
    rng = np.random.default_rng(0)
    weight = sparse(rng, (64, 96), 0.2)
    workload = product(32, 64, 96, RELU, weight)
    default = TEMPLATE.default(workload, H100)
    valid = validator(candidates_of(workload, H100))
    alone, clusters = default.replace(parts=1), default.replace(parts=2)
    assert [valid(alone, version, "") for version in (1, 2)] == [True, False]
    assert [valid(clusters, version, "") for version in (1, 2)] == [False, True]


def test_default_is_a_point_of_the_space_and_any_point_fits_into_shared_memory() -> None:
    rng = np.random.default_rng(0)
    for n, m, k in ((9, 10, 16), (128, 300, 2000), (1024, 512, 512)):
        weight = sparse(rng, (m, k), 0.1)
        workload = product(n, m, k, RELU, weight)
        space = TEMPLATE.space(workload, H100)
        chosen = TEMPLATE.default(workload, H100)
        assert space.contains(chosen)
        largest = Config.of(space.template, **{knob.name: knob.values[-1] for knob in space.knobs})
        for point in (chosen, largest, largest.replace(parts=1, nt=32)):
            packed = TEMPLATE.pack(weight, None, workload, point, H100)
            launch = TEMPLATE.kernel(workload, point, packed, H100, "kernel")
            assert launch.shared <= H100.shared
            assert launch.grid[0] % launch.cluster == 0


def test_rank_has_each_meaning_once_and_spaces_are_small() -> None:
    rng = np.random.default_rng(0)
    for n, m, k in ((32, 512, 512), (128, 1024, 1024), (1024, 2048, 2048)):
        workload = product(n, m, k, RELU, sparse(rng, (m, k), 0.1))
        space = TEMPLATE.space(workload, H100)
        ranked = rank(workload, space, H100)
        assert space.cardinality <= 1500
        assert [clocks for clocks, _ in ranked] == sorted(clocks for clocks, _ in ranked)
        whole = {(c["nt"], c["c"], c["rows"], c["warps"], min(c.int("chunk"), -(-k // c.int("parts"))), c["parts"])
                 for _, c in ranked}  # fmt: skip
        assert len(whole) == len(ranked)


def test_a_grid_that_fills_the_gpu_is_estimated_slower_in_large_clusters() -> None:
    # Measured: 128 blocks of one per multiprocessor take 49 us in clusters of 2, 96 us in clusters of 4.
    rng = np.random.default_rng(0)
    workload = product(128, 4096, 4096, RELU, sparse(rng, (4096, 4096), 0.1))
    clocks = {config: value for value, config in rank(workload, TEMPLATE.space(workload, H100), H100)}
    assert clocks[config(64, 4, 8, 16, 256, parts=2)] < clocks[config(128, 4, 8, 16, 128, parts=4)]
