"""Block kernels in TF32 compute what numpy computes in float64, and run only where that is allowed."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from cuda_half_cases import FULL, blocks, check_half, half_product, named, whole_numbers
from cuda_remainder_cases import TARGET, conv2d, matmul, needs_nvcc, nvcc_faults
from sparsetvm.schedules.base import matching
from sparsetvm.schedules.cuda.block_tf32 import BlockTf32

from sparsetvm.core.config import Config
from sparsetvm.core.target import parse_target
from sparsetvm.core.workload import ConvGeometry, Epilogue, Workload
from sparsetvm.search.candidates import candidates_of

TEMPLATE = BlockTf32()
BASE = Config.of("cuda.block_tf32", tile="32x32", warps="2-1", depth=2)


def product(block: tuple[int, int], m: int, k: int, n: int, epilogue: Epilogue = FULL) -> Workload:
    base = matmul(m, k, n, epilogue)
    return msgspec.structs.replace(base, pattern=named("block", block, 0.3), tf32=True)


@pytest.mark.parametrize(
    ("block", "m", "k", "n", "tile", "warps"),
    [
        ((32, 32), 100, 150, 40, "16x32", "2-1"), ((8, 8), 75, 77, 24, "32x16", "1-4"),
        ((16, 1), 40, 50, 18, "16x16", "1-1"),
    ],
)  # fmt: skip
def test_blocks_of_any_size_match_float64(
    block: tuple[int, int], m: int, k: int, n: int, tile: str, warps: str
) -> None:
    weight = blocks(m, k, block)
    config = BASE.replace(tile=tile, warps=warps)
    error = check_half(TEMPLATE, product(block, m, k, n), weight, config)
    assert 1e-5 < error < 1e-3


def test_every_factor_meets_the_right_partner() -> None:
    weight = blocks(70, 96, (16, 16))
    whole_numbers(TEMPLATE, product((16, 16), 70, 96, 136), weight, BASE.replace(tile="64x64", warps="1-2"))


def test_pointwise_convolutions_are_products() -> None:
    base = conv2d(ConvGeometry(48, 5, 7, (1, 1)), 40, batch=2, epilogue=FULL, pad=1)
    workload = msgspec.structs.replace(base, pattern=named("block", (16, 16), 0.3), tf32=True)
    check_half(TEMPLATE, workload, blocks(40, 48, (16, 16)), BASE)


def test_permission_decides_and_float16_in_memory_is_for_others() -> None:
    workload = product((16, 16), 64, 64, 64)
    assert TEMPLATE.matches(workload, TARGET)
    assert not TEMPLATE.matches(msgspec.structs.replace(workload, tf32=False, fp16=True), TARGET)
    assert not TEMPLATE.matches(msgspec.structs.replace(workload, pattern=named("block", (4, 4), 0.3)), TARGET)
    half = half_product(blocks(64, 64, (16, 16)), 64, FULL, True, False, workload.pattern)
    assert not TEMPLATE.matches(msgspec.structs.replace(half, tf32=True), TARGET)


def test_blocks_take_tf32_by_default_where_it_is_allowed() -> None:
    target = parse_target("cuda,sm_90", allow_tf32=True)
    workload = msgspec.structs.replace(product((32, 32), 2048, 2048, 256), pattern=named("block", (32, 32), 0.1))
    assert candidates_of(workload, target).default.template == "cuda.block_tf32"
    strict = msgspec.structs.replace(workload, tf32=False)
    assert {template.arithmetic for template in matching(strict, target)} == {"float32"}


@needs_nvcc
@pytest.mark.parametrize(("tile", "warps"), [("32x128", "8-1"), ("64x64", "2-8")])
def test_block_tf32_compiles_for_sm_90_without_spills(tile: str, warps: str, tmp_path: Path) -> None:
    gelu = Epilogue(bias=True, residual=True, activation="gelu")
    workload = product((32, 32), 64, 64, 64, gelu)
    config = BASE.replace(tile=tile, warps=warps, depth=4)
    packed = TEMPLATE.pack(blocks(64, 64, (32, 32)), None, workload, config, TARGET)
    assert nvcc_faults(TEMPLATE.kernel(workload, config, packed, TARGET, "kernel"), tmp_path) == "", config
