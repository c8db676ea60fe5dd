"""The 2:4 kernel computes what numpy computes in float64; packing keeps every weight in its place."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from cuda_half_cases import FULL, check_half, half_product, named, two_four, whole_numbers
from cuda_remainder_cases import TARGET, needs_nvcc, nvcc_faults
from sparsetvm.schedules.cuda.two_four import TwoFour

from sparsetvm.core.config import Config
from sparsetvm.core.workload import Epilogue
from sparsetvm.formats.two_four import TILE_BYTES, is_two_four, pack_two_four

TEMPLATE = TwoFour()
PATTERN = named("n:m", (2, 4), 0.5)


@pytest.mark.parametrize(
    ("m", "k", "n", "shape", "y_half"),
    [
        (100, 132, 40, "1x128-4", True),
        (130, 200, 136, "2x128-5", False),
        (130, 200, 72, "1x64-6-1-2", True),
        (130, 330, 136, "1x128-8-4-1", True),
        (100, 132, 24, "1x64-12-4-1", False),  # a step less than there are blocks
        (100, 520, 40, "1x128-8-2-1", False),
        (100, 520, 40, "1x64-12-2-1", True),
    ],
)
def test_two_four_matches_float64(m: int, k: int, n: int, shape: str, y_half: bool) -> None:
    weight = two_four(m, k)
    config = Config.of("cuda.two_four", shape=shape)
    check_half(TEMPLATE, half_product(weight, n, FULL, True, y_half, PATTERN), weight, config)


@pytest.mark.parametrize("shape", ["1x128-4", "1x64-12-2-1"])
def test_two_four_meets_the_right_partners(shape: str) -> None:
    weight = two_four(70, 196)
    config = Config.of("cuda.two_four", shape=shape)
    whole_numbers(TEMPLATE, half_product(weight, 72, FULL, True, True, PATTERN), weight, config)


def test_packing_keeps_the_two_of_every_four() -> None:
    weight = two_four(10, 70)
    packed = pack_two_four(weight, 128)
    assert packed.shape == (2, 2, TILE_BYTES)
    kept = packed[..., :4096].reshape(-1).view(np.float16)
    expected = np.sort(weight[weight != 0].astype(np.float16))
    np.testing.assert_array_equal(np.sort(kept[kept != 0]), expected)
    with pytest.raises(OverflowError, match="float16"):
        pack_two_four(np.full((4, 4), 1e5, np.float32), 64)


def test_only_weights_with_at_most_two_of_four_count() -> None:
    assert is_two_four(two_four(9, 21) != 0)
    assert not is_two_four(np.ones((4, 8), bool))
    assert is_two_four(np.ones((4, 2), bool))


def test_two_four_matches_only_x_in_float16_on_hopper() -> None:
    weight = two_four(64, 64)
    workload = half_product(weight, 64, FULL, True, True, PATTERN)
    assert TEMPLATE.matches(workload, TARGET)
    assert not TEMPLATE.matches(half_product(weight, 64, FULL, False, True, PATTERN), TARGET)
    assert not TEMPLATE.matches(msgspec.structs.replace(workload, fp16=False), TARGET)
    assert not TEMPLATE.matches(workload, msgspec.structs.replace(TARGET, isa="sm_80"))
    assert not TEMPLATE.matches(msgspec.structs.replace(workload, pattern=named("n:m", (4, 8), 0.5)), TARGET)


@needs_nvcc
@pytest.mark.parametrize("shape", ["1x256-5", "2x128-6", "1x128-8-4-1", "1x64-6-1-2"])
def test_two_four_compiles_for_sm_90a_without_spills(shape: str, tmp_path: Path) -> None:
    gelu = Epilogue(bias=True, residual=True, activation="gelu")
    weight = two_four(64, 64)
    workload = half_product(weight, 64, gelu, True, shape[0] == "2", PATTERN)
    config = Config.of("cuda.two_four", shape=shape)
    packed = TEMPLATE.pack(weight, None, workload, config, TARGET)
    launch = TEMPLATE.kernel(workload, config, packed, TARGET, "kernel")
    assert launch.shared <= TARGET.shared
    assert nvcc_faults(launch, tmp_path) == ""
