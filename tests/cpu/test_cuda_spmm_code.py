"""cuda.spmm_code computes what numpy computes in float64 (in the emulator, so without a GPU)."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_cases import H100, check_convolution, check_product, convolution, product, sparse
from sparsetvm.schedules.base import Packed, template

from sparsetvm.core.config import Config
from sparsetvm.core.workload import ConvGeometry, Epilogue

TEMPLATE = template("cuda.spmm_code")
RELU = Epilogue(bias=True, activation="relu")


def config(rows: int, groups: int, threads: int, v: int = 1, stage: int = 0) -> Config:
    return Config.of(TEMPLATE.name, rows=rows, groups=groups, threads=threads, v=v, stage=stage)


PRODUCTS = [config(2, 1, 32), config(4, 2, 64, 4), config(8, 4, 32, 2, 16), config(4, 2, 32, 1, 16)]


SHAPES = [(1, 7, 5, 0.5), (33, 37, 53, 0.15), (131, 17, 64, 0.05), (33, 19, 47, 0.2)]


@pytest.mark.parametrize("chosen", PRODUCTS, ids=lambda c: "_".join(str(v) for _, v in c.knobs))
def test_product_matches_float64_for_odd_shapes(chosen: Config) -> None:
    at = PRODUCTS.index(chosen)
    for n, m, k, density in (SHAPES[at], SHAPES[at - 1]):
        rng = np.random.default_rng(n)
        weight = sparse(rng, (m, k), density)
        epilogue = RELU if n != 33 else Epilogue(residual=True, activation="clip", low=-0.5, high=1.5)
        check_product(TEMPLATE, product(n, m, k, epilogue, weight), chosen, weight, rng)


CONVS = {
    "1x1": ConvGeometry(6, 7, 9, (1, 1)),
    "3x3": ConvGeometry(5, 12, 15, (3, 3), pads=(1, 1, 1, 1)),
    "3x3 stride 2": ConvGeometry(5, 9, 8, (3, 3), (2, 2), (1, 1, 1, 1)),
    "groups": ConvGeometry(6, 7, 7, (3, 3), pads=(1, 1, 1, 1), groups=2),
}


@pytest.mark.parametrize("name", CONVS)
def test_convolution_matches_float64_and_writes_zeros_around_it(name: str) -> None:
    conv, m = CONVS[name], 12
    rng = np.random.default_rng(1)
    weight = sparse(rng, (m, conv.in_channels // conv.groups * conv.kernel[0] * conv.kernel[1]), 0.3)
    epilogue = Epilogue(bias=True, residual=True, activation="silu")
    check_convolution(TEMPLATE, convolution(conv, m, 2, epilogue, weight), config(4, 2, 32, 2, 16), weight, rng)


def test_layers_of_one_pattern_and_other_values_have_code_of_their_own() -> None:
    rng = np.random.default_rng(0)
    weight = sparse(rng, (8, 16), 0.3)
    workload = product(32, 8, 16, RELU, weight)
    packs: list[Packed] = [TEMPLATE.pack(w, None, workload, PRODUCTS[0], H100) for w in (weight, 2 * weight, weight)]
    codes = [packed.meta["code"] for packed in packs]
    assert codes[0] == codes[2] != codes[1]
    launches = [TEMPLATE.kernel(workload, PRODUCTS[0], packed, H100, "k") for packed in packs]
    assert launches[0] == launches[2] != launches[1]


def test_default_is_a_point_of_the_space_and_any_point_fits_into_shared_memory() -> None:
    rng = np.random.default_rng(0)
    for n, m, k in ((9, 10, 16), (1024, 128, 300)):
        weight = sparse(rng, (m, k), 0.05)
        workload = product(n, m, k, RELU, weight)
        space = TEMPLATE.space(workload, H100)
        chosen = TEMPLATE.default(workload, H100)
        assert space.contains(chosen)
        largest = Config.of(space.template, **{knob.name: knob.values[-1] for knob in space.knobs})
        for point in (chosen, largest):
            launch = TEMPLATE.kernel(workload, point, TEMPLATE.pack(weight, None, workload, point, H100), H100, "k")
            assert launch.shared <= H100.shared
            assert launch.block <= 512
