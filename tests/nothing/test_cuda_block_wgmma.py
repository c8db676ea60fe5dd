"""Panels on Hopper's tensor cores compute what numpy computes in float64, for blocks and for dense weights."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from cuda_half_cases import FULL, blocks, check_half, half_product, named, whole_numbers
from cuda_remainder_cases import TARGET, needs_nvcc, nvcc_faults
from sparsetvm.schedules.cuda.block_wgmma import BlockWgmma
from sparsetvm.schedules.cuda.dense_wgmma import DenseWgmma

from sparsetvm.core.config import Config
from sparsetvm.core.workload import Epilogue
from sparsetvm.formats.wgmma_panels import wgmma_panels

BLOCKS, DENSE = BlockWgmma(), DenseWgmma()


def config(shape: str, name: str = "cuda.block_wgmma") -> Config:
    return Config.of(name, shape=shape)


@pytest.mark.parametrize(
    ("block", "m", "k", "n", "shape", "y_half"),
    [
        ((32, 32), 130, 170, 40, "64x256-32-5-2", True),
        ((64, 64), 128, 260, 264, "64x512-64-3-1", False),
        ((32, 32), 130, 170, 136, "64x128-32-16-1-2", True),
        ((64, 64), 128, 260, 40, "64x128-64-8-1-2", False),
    ],
)
def test_blocks_match_float64(block: tuple[int, int], m: int, k: int, n: int, shape: str, y_half: bool) -> None:
    weight = blocks(m, k, block)
    workload = half_product(weight, n, FULL, True, y_half, named("block", block, 0.3))
    check_half(BLOCKS, workload, weight, config(shape))


def test_every_factor_meets_the_right_partner() -> None:
    weight = blocks(150, 192, (64, 64))
    workload = half_product(weight, 72, FULL, True, True, named("block", (64, 64), 0.3))
    whole_numbers(BLOCKS, workload, weight, config("128x256-64-4-1"))


@pytest.mark.parametrize("shape", ["64x256-64-5-1", "128x64-64-4-2", "128x64-64-8-1-4", "128x128-64-6-1-4"])
def test_dense_weights_are_panels_with_all_columns(shape: str) -> None:
    weight = np.random.default_rng(0).standard_normal((70, 100)).astype(np.float32)
    workload = half_product(weight, 24, FULL, True, True, named("dense", (1, 1), 1.0))
    check_half(DENSE, workload, weight, config(shape, "cuda.dense_wgmma"))


def test_packing_gives_each_panel_its_runs_longest_first() -> None:
    weight = np.zeros((130, 100), np.float32)
    weight[3, 40], weight[70, 0], weight[70, 99], weight[129, 64] = 1, 2, 3, 4
    packed = wgmma_panels(weight, 64, 32)
    assert packed.heads.tolist() == [[64, 0, 2, 0], [0, 2, 1, 0], [128, 3, 1, 0]]
    assert packed.starts.tolist() == [0, 96, 32, 64]
    # Row 6 of the second panel has column 99 = 96 + 3, the first panel's row 3 column 40 = 32 + 8.
    assert packed.tiles[1, 0, 0, 0, 6, 3] == 3
    assert packed.tiles[2, 0, 0, 1, 3, 0] == 1
    assert np.count_nonzero(packed.tiles) == 4
    with pytest.raises(OverflowError, match="float16"):
        wgmma_panels(np.full((4, 4), 1e5, np.float32), 64, 32)


def test_only_large_blocks_with_x_in_float16_on_hopper_match() -> None:
    weight = blocks(128, 128, (64, 64))
    workload = half_product(weight, 64, FULL, True, True, named("block", (64, 64), 0.3))
    assert BLOCKS.matches(workload, TARGET)
    for other in (
        half_product(weight, 64, FULL, False, True, workload.pattern),
        msgspec.structs.replace(workload, fp16=False),
        msgspec.structs.replace(workload, pattern=named("block", (8, 32), 0.3)),
        msgspec.structs.replace(workload, pattern=named("block", (64, 16), 0.3)),
    ):
        assert not BLOCKS.matches(other, TARGET)
    assert DENSE.matches(msgspec.structs.replace(workload, pattern=named("unstructured", (1, 1), 0.3)), TARGET)
    assert not DENSE.matches(workload, msgspec.structs.replace(TARGET, isa="sm_80"))


@needs_nvcc
@pytest.mark.parametrize("shape", ["64x256-32-5-2", "64x512-64-3-1", "128x256-64-4-1", "64x128-64-8-1-2"])
def test_panels_compile_for_sm_90a_without_spills(shape: str, tmp_path: Path) -> None:
    gelu = Epilogue(bias=True, residual=True, activation="gelu")
    weight = blocks(128, 128, (64, 64))
    workload = half_product(weight, 64, gelu, True, shape[0] == "1", named("block", (64, 64), 0.3))
    packed = BLOCKS.pack(weight, None, workload, config(shape), TARGET)
    launch = BLOCKS.kernel(workload, config(shape), packed, TARGET, "kernel")
    assert launch.shared <= TARGET.shared
    assert nvcc_faults(launch, tmp_path) == ""


@needs_nvcc
@pytest.mark.parametrize("shape", ["128x64-64-4-2-2", "128x128-64-6-1-4", "128x128-32-6-2-8"])
def test_panels_of_few_positions_compile_for_sm_90a_without_spills(shape: str, tmp_path: Path) -> None:
    gelu = Epilogue(bias=True, residual=True, activation="gelu")
    weight = np.ones((128, 128), np.float32)
    workload = half_product(weight, 64, gelu, True, True, named("dense", (1, 1), 1.0))
    chosen = config(shape, "cuda.dense_wgmma")
    launch = DENSE.kernel(workload, chosen, DENSE.pack(weight, None, workload, chosen, TARGET), TARGET, "kernel")
    assert launch.shared <= TARGET.shared // (1 if shape.split("-")[3] == "1" else 2)
    assert nvcc_faults(launch, tmp_path) == ""
