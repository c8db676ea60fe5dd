"""Block kernels that use the copy engine compute what numpy computes in float64; similar panels are grouped."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from cuda_half_cases import FULL, blocks, check_half, half_product, named, whole_numbers
from cuda_remainder_cases import TARGET, launch_layer, needs_nvcc, nvcc_faults
from sparsetvm.schedules.cuda.block_tiles import BlockTiles

from sparsetvm.core.config import Config
from sparsetvm.core.workload import Epilogue, Workload
from sparsetvm.formats.panel_groups import HEAD, START_BITS, panel_groups, similar_groups
from sparsetvm.measure.reference import inputs_of, make_reference

TEMPLATE = BlockTiles()


def config_of(shape: str) -> Config:
    return Config.of("cuda.block_tiles", shape=shape)


def workload_of(
    block: tuple[int, int], weight: np.ndarray, n: int, y_half: bool, epilogue: Epilogue = FULL
) -> Workload:
    return half_product(weight, n, epilogue, True, y_half, named("block", block, 0.3))


@pytest.mark.parametrize(
    ("block", "m", "k", "n", "shape", "y_half"),
    [
        ((32, 32), 200, 400, 136, "32x128-2-4-9-2", True),
        ((16, 16), 70, 90, 33, "32x64-1-2-8-4", False),
        ((32, 64), 330, 500, 24, "32x256-2-8-5-2", True),
        ((16, 16), 70, 90, 264, "16x256-4-4-4-2", True),
    ],
)
def test_tiles_match_float64(block: tuple[int, int], m: int, k: int, n: int, shape: str, y_half: bool) -> None:
    weight = blocks(m, k, block)
    check_half(TEMPLATE, workload_of(block, weight, n, y_half), weight, config_of(shape))


@pytest.mark.parametrize(("block", "shape"), [((32, 32), "32x128-2-4-9-2"), ((16, 16), "16x128-4-4-4-3")])
def test_tiles_meet_the_right_partners(block: tuple[int, int], shape: str) -> None:
    weight = blocks(170, 1200, block, kept=0.6)  # more runs than a warp reads at once
    whole_numbers(TEMPLATE, workload_of(block, weight, 72, True), weight, config_of(shape))


def test_whole_rows_and_an_empty_weight() -> None:
    weight = np.random.default_rng(0).standard_normal((50, 70)).astype(np.float32)
    weight[::2] = 0
    rows = half_product(weight, 24, FULL, True, True, named("rows", (1, 1), 0.5))
    check_half(TEMPLATE, rows, weight, config_of("32x64-1-2-8-4"))
    bias, empty = np.ones(50, np.float32), np.zeros_like(weight)
    reference = make_reference(rows, empty, bias)
    y = launch_layer(TEMPLATE, rows, config_of("32x64-1-2-8-4"), empty, bias, inputs_of(reference))
    assert reference.fault(y, TEMPLATE.tolerance) == ""


def test_tiles_match_products_with_x_in_float16_on_hopper() -> None:
    weight = blocks(64, 64, (16, 16))
    workload = workload_of((16, 16), weight, 64, True)
    assert TEMPLATE.matches(workload, TARGET)
    assert not TEMPLATE.matches(workload, msgspec.structs.replace(TARGET, isa="sm_80"))
    assert not TEMPLATE.matches(msgspec.structs.replace(workload, fp16=False), TARGET)
    assert not TEMPLATE.matches(half_product(weight, 64, FULL, False, True, workload.pattern), TARGET)
    for pattern in (named("unstructured", (1, 1), 0.3), named("block", (16, 8), 0.3), named("columns", (1, 1), 0.3)):
        assert not TEMPLATE.matches(msgspec.structs.replace(workload, pattern=pattern), TARGET)
    with pytest.raises(OverflowError, match="float16"):
        TEMPLATE.pack(np.full((64, 64), 7e4, np.float32), None, workload, config_of("32x64-1-2-8-4"), TARGET)


def test_every_shape_fits_as_often_as_it_says() -> None:
    weight = blocks(64, 64, (32, 32))
    workload = workload_of((32, 32), weight, 64, True)
    for config in TEMPLATE.space(workload, TARGET):
        packed = TEMPLATE.pack(weight, None, workload, config, TARGET)
        shared = TEMPLATE.kernel(workload, config, packed, TARGET, "kernel").shared
        assert (shared + 1024) * int(config.str("shape").split("-")[-1]) <= TARGET.shared + 1024, config


def test_default_is_the_smallest_estimate() -> None:
    weight = np.zeros((4096, 4096), np.float32)
    workload = half_product(weight, 1024, Epilogue(), True, True, named("block", (32, 32), 0.1))
    default = TEMPLATE.default(workload, TARGET)
    estimates = [TEMPLATE.estimate(workload, config, TARGET) for config in TEMPLATE.space(workload, TARGET)]
    assert TEMPLATE.estimate(workload, default, TARGET) == min(estimates)
    assert default.str("shape").startswith("32x256")


def test_panels_with_the_same_columns_come_together() -> None:
    mask = np.eye(4, 12, dtype=bool)[[0, 1, 2, 3, 0, 1, 2]]
    groups = similar_groups(mask, 2)
    assert sorted(number for number in groups.ravel() if number >= 0) == list(range(7))
    assert all(len(np.unique(mask[group[group >= 0]], axis=0)) == 1 for group in groups)


def test_groups_hold_every_weight_once() -> None:
    weight = blocks(100, 150, (16, 16))
    packed = panel_groups(weight, 32, 16, 2, 2)
    expected = np.sort(weight[weight != 0].astype(np.float16))
    np.testing.assert_array_equal(np.sort(packed.tiles[packed.tiles != 0]), expected)
    assert sorted(packed.groups[:, HEAD:].ravel()) == [0, 32, 64, 96]
    starts = packed.runs & (1 << START_BITS) - 1
    assert (starts % 16 == 0).all()
    assert len(packed.runs) == 2 * packed.groups[:, 1].sum()


@needs_nvcc
@pytest.mark.parametrize("shape", ["32x256-2-8-5-2", "32x128-2-4-3-4", "16x256-4-4-4-2"])
def test_tiles_compile_for_sm_90_without_spills(shape: str, tmp_path: Path) -> None:
    gelu = Epilogue(bias=True, residual=True, activation="gelu")
    weight = blocks(64, 64, (32, 32))
    block = (16, 16) if shape.startswith("16") else (32, 32)
    workload = workload_of(block, weight, 64, "3-4" not in shape, gelu)
    packed = TEMPLATE.pack(weight, None, workload, config_of(shape), TARGET)
    assert nvcc_faults(TEMPLATE.kernel(workload, config_of(shape), packed, TARGET, "kernel"), tmp_path) == ""
