"""cuda.spmm_rows computes what numpy computes in float64 (in the emulator, so without a GPU)."""

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
    launch,
    product,
    sparse,
)
from sparsetvm.schedules.base import template

from sparsetvm.core.config import Config
from sparsetvm.core.workload import ConvGeometry, Epilogue

TEMPLATE = template("cuda.spmm_rows")


def config(
    nt: int,
    c: int,
    rows: int,
    x: str = "swept",
    entries: str = "direct",
    parts: int = 1,
    slices: int = 1,
    unroll: int = 4,
) -> Config:
    return Config.of(
        TEMPLATE.name,
        **{"nt": nt, "c": c, "rows": rows, "warps": 8, "x": x, "entries": entries},
        **{"parts": parts, "slices": slices, "unroll": unroll},
    )


PRODUCTS = [
    config(32, 4, 32),
    config(16, 4, 32, entries="ring", unroll=8),
    config(64, 4, 64, "rotated", slices=2),
    config(32, 4, 32, "rotated", "ring", parts=4, slices=2, unroll=2),
    config(128, 8, 32, "shared", parts=2),
    config(32, 2, 64, "shared", "ring", unroll=2),
]


@pytest.mark.parametrize("chosen", PRODUCTS, ids=lambda c: "_".join(str(v) for _, v in c.knobs))
def test_product_matches_float64_for_any_shape(chosen: Config) -> None:
    check_products_of_any_shape(TEMPLATE, chosen, 6)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("activation", ["none", "clip", "gelu"])
@pytest.mark.parametrize("chosen", PRODUCTS[1:4:2], ids=["whole rows", "pieces of rows"])
def test_product_matches_float64_for_every_epilogue(chosen: Config, activation: str, residual: bool) -> None:
    rng = np.random.default_rng(0)
    weight = sparse(rng, (37, 53), 0.15)
    epilogue = Epilogue(bias=not residual, residual=residual, activation=activation, low=-0.5, high=1.5)
    check_product(TEMPLATE, product(33, 37, 53, epilogue, weight), chosen, weight, rng)


def test_infinity_reaches_only_rows_that_use_its_column() -> None:
    """Batches are filled up with zero weights: they must read columns that their row uses anyway."""
    rng = np.random.default_rng(0)
    weight = sparse(rng, (16, 40), 0.4)
    weight[1:, 7] = 0
    workload = product(8, 16, 40, Epilogue(), weight)
    x = rng.standard_normal((8, 40)).astype(np.float32)
    x[:, 7] = np.inf
    for chosen in PRODUCTS[1:4:2]:
        got = launch(TEMPLATE, workload, chosen, weight, None, workload.layout_in.to_physical(x), None)
        rows = workload.layout_out.to_logical(got, (8, 16))
        assert np.isfinite(rows[:, 4:]).all()
        assert not np.isfinite(rows[:, 0]).any()


CONVS = {
    "1x1": ConvGeometry(6, 7, 9, (1, 1)),
    "3x3 of several tiles": ConvGeometry(5, 12, 15, (3, 3), pads=(1, 1, 1, 1)),
    "3x3 stride 2": ConvGeometry(5, 9, 8, (3, 3), (2, 2), (1, 1, 1, 1)),
    "5x5 valid": ConvGeometry(3, 12, 12, (5, 5)),
    "3x3 dilated": ConvGeometry(3, 10, 11, (3, 3), pads=(2, 2, 2, 2), dilation=(2, 2)),
    "3x2 uneven pads": ConvGeometry(3, 8, 6, (3, 2), (1, 2), (0, 1, 2, 0)),
    "groups": ConvGeometry(6, 7, 7, (3, 3), pads=(1, 1, 1, 1), groups=2),
    "depthwise": ConvGeometry(12, 7, 7, (3, 3), pads=(1, 1, 1, 1), groups=12),
}
CONV_CONFIGS = [config(64, 2, 32), config(128, 4, 32, "rotated", "ring"), config(32, 4, 32, "shared", parts=2)]


@pytest.mark.parametrize("name", CONVS)
def test_convolution_matches_float64_and_writes_zeros_around_it(name: str) -> None:
    conv, m = CONVS[name], 12
    rng = np.random.default_rng(1)
    weight = sparse(rng, (m, conv.in_channels // conv.groups * conv.kernel[0] * conv.kernel[1]), 0.3)
    for chosen, epilogue in zip(CONV_CONFIGS, (RELU, Epilogue(residual=True, activation="silu"), RELU), strict=True):
        check_convolution(TEMPLATE, convolution(conv, m, 2, epilogue, weight), chosen, weight, rng)


def test_default_is_a_point_of_the_space_and_any_point_fits_into_shared_memory() -> None:
    rng = np.random.default_rng(0)
    for n, m, k in ((9, 10, 16), (128, 300, 2000), (1024, 512, 512)):
        weight = sparse(rng, (m, k), 0.1)
        workload = product(n, m, k, RELU, weight)
        space = TEMPLATE.space(workload, H100)
        chosen = TEMPLATE.default(workload, H100)
        assert space.contains(chosen)
        largest = Config.of(space.template, **{knob.name: knob.values[-1] for knob in space.knobs})
        for point in (chosen, largest, largest.replace(parts=1, nt=32), largest.replace(x="shared", parts=1, nt=16)):
            packed = TEMPLATE.pack(weight, None, workload, point, H100)
            made = TEMPLATE.kernel(workload, point, packed, H100, "kernel")
            assert made.shared <= H100.shared
            assert made.grid[0] % made.cluster == 0


def test_layers_that_it_never_wins_are_left_to_others() -> None:
    rng = np.random.default_rng(0)
    weight = sparse(rng, (64, 72), 0.1)
    assert TEMPLATE.matches(product(32, 64, 72, RELU, weight), H100)
    assert not TEMPLATE.matches(product(9, 64, 72, RELU, weight), H100)
    taps = convolution(ConvGeometry(8, 14, 14, (3, 3), pads=(1, 1, 1, 1)), 64, 1, RELU, weight)
    assert not TEMPLATE.matches(taps, H100)
    assert TEMPLATE.space(product(32, 64, 72, RELU, weight), H100).cardinality < 1000
