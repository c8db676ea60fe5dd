"""Block kernels in float16 compute what numpy computes in float64, for any block, size and type of X and Y."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from cuda_half_cases import FULL, blocks, check_half, half_product, named, whole_numbers
from cuda_remainder_cases import TARGET, conv2d, launch_layer, matmul, needs_nvcc, nvcc_faults
from sparsetvm.schedules.cuda.block_mma import BlockMma
from sparsetvm.schedules.cuda.dense_fp16 import DenseFp16

from sparsetvm.core.config import Config
from sparsetvm.core.workload import ConvGeometry, Epilogue, Workload
from sparsetvm.measure.reference import inputs_of, make_reference

MMA, DENSE = BlockMma(), DenseFp16()
BASE = Config.of("cuda.block_mma", tile="32x64", warps="2-1", depth=2)
# Rows and columns of a block, m, k, n: tails everywhere.
CASES = [
    ((32, 32), 100, 150, 40), ((16, 16), 70, 90, 33), ((8, 8), 75, 77, 24), ((16, 1), 40, 50, 17), ((8, 4), 30, 15, 12),
]  # fmt: skip


def workload_of(block: tuple[int, int], weight: np.ndarray, n: int, number: int = 0) -> Workload:
    """X and Y in float16 or float32 by turns."""
    pattern = named("block", block, np.count_nonzero(weight) / weight.size)
    return half_product(weight, n, FULL, number % 2 == 0, number // 2 % 2 == 0, pattern)


@pytest.mark.parametrize("number", range(len(CASES)))
def test_blocks_of_any_size_match_float64(number: int) -> None:
    block, m, k, n = CASES[number]
    weight = blocks(m, k, block)
    warps = ("2-1", "1-4", "2-2", "1-1")[number % 4]
    tile = ("16x16", "16x64", "32x32", "16x32", "16x16")[number]
    check_half(MMA, workload_of(block, weight, n, number), weight, BASE.replace(tile=tile, warps=warps))


@pytest.mark.parametrize("tile", ["32x16", "64x64", "16x128"])
def test_every_tile_meets_the_right_partners(tile: str) -> None:
    weight = blocks(70, 96, (16, 16))
    number = len(tile) + int(tile[0])
    config = BASE.replace(tile=tile, warps=("1-2", "4-1", "2-2")[number % 3], depth=2 + number % 3)
    whole_numbers(MMA, workload_of((16, 16), weight, 136, number), weight, config)


def test_tokens_that_fill_no_16_bytes_are_read_in_smaller_pieces() -> None:
    weight = blocks(64, 64, (32, 32))
    workload = msgspec.structs.replace(matmul(64, 64, 44), pattern=named("block", (32, 32), 0.3), fp16=True)
    whole_numbers(MMA, workload, weight, BASE)


def test_dense_weights_and_whole_rows_and_columns_are_panels_too() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((50, 70)).astype(np.float32)
    dense = half_product(weight, 24, FULL, True, True, named("dense", (1, 1), 1.0))
    small = BASE.replace(tile="16x16", warps="1-2")
    check_half(DENSE, dense, weight, Config.of("cuda.dense_fp16", **dict(small.knobs)))
    for kind, at in (("rows", np.s_[::2]), ("columns", np.s_[:, ::3])):
        pruned = weight.copy()
        pruned[at] = 0
        check_half(MMA, half_product(pruned, 24, FULL, True, True, named(kind, (1, 1), 0.6)), pruned, small)


def test_pointwise_convolutions_are_products() -> None:
    weight = blocks(40, 48, (16, 16))
    base = conv2d(ConvGeometry(48, 5, 7, (1, 1)), 40, batch=2, epilogue=FULL, pad=1)
    workload = msgspec.structs.replace(base, pattern=named("block", (16, 16), 0.3), fp16=True)
    check_half(MMA, workload, weight, BASE.replace(tile="16x32"))
    three = conv2d(ConvGeometry(8, 5, 7, (3, 3), pads=(1, 1, 1, 1)), 40)
    assert not DENSE.matches(msgspec.structs.replace(three, fp16=True), TARGET)


def test_an_empty_weight_gives_bias_and_residual() -> None:
    weight = np.zeros((64, 64), np.float32)
    weight[0, 0] = 1.0
    workload = half_product(weight, 16, FULL, True, True, named("block", (32, 32), 0.01))
    empty = np.zeros_like(weight)
    reference = make_reference(workload, empty, np.ones(64, np.float32))
    y = launch_layer(MMA, workload, BASE, empty, np.ones(64, np.float32), inputs_of(reference))
    assert reference.fault(y, MMA.tolerance) == ""


def test_permission_and_pattern_decide_who_matches() -> None:
    weight = blocks(64, 64, (16, 16))
    workload = half_product(weight, 64, FULL, True, True, named("block", (16, 16), 0.3))
    strict = msgspec.structs.replace(workload, fp16=False)
    loose = msgspec.structs.replace(workload, pattern=named("unstructured", (1, 1), 0.3))
    small = msgspec.structs.replace(workload, pattern=named("block", (4, 4), 0.3))
    assert [t.matches(workload, TARGET) for t in (MMA, DENSE)] == [True, True]
    assert not any(t.matches(strict, TARGET) for t in (MMA, DENSE))
    for other in (loose, small):
        assert [t.matches(other, TARGET) for t in (MMA, DENSE)] == [False, True]


def test_weights_beyond_float16_are_refused() -> None:
    weight = np.full((16, 16), 7e4, np.float32)
    workload = half_product(weight, 16, Epilogue(), True, True, named("block", (16, 16), 1.0))
    with pytest.raises(OverflowError, match="float16"):
        MMA.pack(weight, None, workload, BASE, TARGET)


def test_defaults_split_columns_only_where_blocks_are_few() -> None:
    def default(n: int) -> Config:
        weight = np.zeros((4096, 4096), np.float32)
        return MMA.default(half_product(weight, n, Epilogue(), True, True, named("block", (32, 32), 0.05)), TARGET)

    assert int(default(16).str("warps").split("-")[1]) >= 8
    assert int(default(1024).str("warps").split("-")[1]) <= 2


@needs_nvcc
@pytest.mark.parametrize("number", range(3))
def test_block_kernels_compile_for_sm_90_without_spills(number: int, tmp_path: Path) -> None:
    weight = blocks(64, 64, (32, 32))
    gelu = Epilogue(bias=True, residual=True, activation="gelu")
    block = ((32, 32), (16, 1))[number % 2]
    workload = half_product(weight, 64, gelu, number != 0, number % 2 == 0, named("block", block, 0.3))
    for tile, warps in (("32x128", "8-1"), ("32x64", "12-1"), ("64x64", "2-8"))[number : number + 1]:
        config = BASE.replace(tile=tile, warps=warps, depth=4)
        packed = MMA.pack(weight, None, workload, config, TARGET)
        assert nvcc_faults(MMA.kernel(workload, config, packed, TARGET, "kernel"), tmp_path) == "", config
