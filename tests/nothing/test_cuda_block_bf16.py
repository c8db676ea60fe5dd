"""Kernels in bfloat16 compute what numpy computes in float64, have the range of float32, and run only where allowed."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from cuda_half_cases import FULL, blocks, check_half, half_product, named, whole_numbers
from cuda_remainder_cases import TARGET, conv2d, launch_layer, matmul, needs_nvcc, nvcc_faults
from emulator.network import run_network
from models import mlp, random_inputs, relative_error, run_onnxruntime
from sparsetvm.schedules.base import arithmetic_of, matching, template

from sparsetvm.core.arithmetic import network_tolerance, to_bfloat16
from sparsetvm.core.config import Config
from sparsetvm.core.target import parse_target
from sparsetvm.core.workload import ConvGeometry, Epilogue, Workload
from sparsetvm.measure import fleet
from sparsetvm.measure.place import find_place
from sparsetvm.rewrite.prepare import prepare
from sparsetvm.search.candidates import candidates_of

BLOCKS, DENSE = template("cuda.block_bf16"), template("cuda.dense_bf16")
BASE = Config.of("cuda.block_bf16", tile="32x32", warps="2-1", depth=2)
BF16 = parse_target("cuda,sm_90,bf16")


def product(block: tuple[int, int], m: int, k: int, n: int, epilogue: Epilogue = FULL) -> Workload:
    base = matmul(m, k, n, epilogue)
    return msgspec.structs.replace(base, pattern=named("block", block, 0.3), bf16=True)


@pytest.mark.parametrize(
    ("block", "m", "k", "n", "tile", "warps"),
    [((32, 32), 100, 150, 40, "16x32", "2-1"), ((16, 1), 40, 50, 18, "16x16", "1-4")],
)
def test_blocks_match_float64(block: tuple[int, int], m: int, k: int, n: int, tile: str, warps: str) -> None:
    error = check_half(BLOCKS, product(block, m, k, n), blocks(m, k, block), BASE.replace(tile=tile, warps=warps))
    assert 1e-3 < error < 8e-3


def test_every_factor_meets_the_right_partner() -> None:
    weight = blocks(70, 96, (16, 16))
    whole_numbers(BLOCKS, product((16, 16), 70, 96, 136), weight, BASE.replace(tile="64x64", warps="1-2"))


def test_pointwise_convolutions_and_dense_weights_are_products_too() -> None:
    base = conv2d(ConvGeometry(48, 5, 7, (1, 1)), 40, batch=2, epilogue=FULL, pad=1)
    weight = blocks(40, 48, (16, 16))
    check_half(BLOCKS, msgspec.structs.replace(base, pattern=named("block", (16, 16), 0.3), bf16=True), weight, BASE)
    dense = Config.of("cuda.dense_bf16", **dict(BASE.knobs))
    check_half(DENSE, msgspec.structs.replace(matmul(40, 48, 20, FULL), bf16=True), weight, dense)


def test_numbers_beyond_float16_stay_finite() -> None:
    weight = 1e6 * blocks(64, 64, (16, 16))
    workload = msgspec.structs.replace(product((16, 16), 64, 64, 16, Epilogue()))
    x = 1e20 * np.random.default_rng(0).standard_normal((16, 64)).astype(np.float32)
    y = launch_layer(BLOCKS, workload, BASE, weight, None, [workload.layout_in.to_physical(x)])
    exact = x.astype(np.float64) @ weight.T.astype(np.float64)
    found = workload.layout_out.to_logical(y, (16, 64))
    assert np.linalg.norm(found - exact) < BLOCKS.tolerance * np.linalg.norm(exact)
    with pytest.raises(OverflowError, match="bfloat16"):
        BLOCKS.pack(np.full((64, 64), 3.4e38, np.float32), None, workload, BASE, TARGET)


def test_rounding_is_to_the_nearest_halves_to_even() -> None:
    values = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -(1 + 2**-7), 0.0, -np.inf], np.float32)
    wide = (to_bfloat16(values).astype(np.uint32) << np.uint32(16)).view(np.float32)
    np.testing.assert_array_equal(wide, [1.0, 1.0, 1 + 2**-6, 1 + 2**-7, -(1 + 2**-7), 0.0, -np.inf])
    assert np.isnan((to_bfloat16(np.array([np.nan])).astype(np.uint32) << np.uint32(16)).view(np.float32)).all()


def test_permission_decides_and_float16_in_memory_is_for_others() -> None:
    workload = product((16, 16), 64, 64, 64)
    assert BLOCKS.matches(workload, TARGET)
    assert DENSE.matches(workload, TARGET)
    strict = msgspec.structs.replace(workload, bf16=msgspec.UNSET, fp16=True, tf32=True)
    assert not BLOCKS.matches(strict, TARGET)
    assert "bfloat16" not in {found.arithmetic for found in matching(strict, TARGET)}
    half = half_product(blocks(64, 64, (16, 16)), 64, FULL, True, False, workload.pattern)
    assert not BLOCKS.matches(msgspec.structs.replace(half, bf16=True), TARGET)


def test_workload_that_must_not_round_keeps_its_identity() -> None:
    strict = matmul(64, 64, 64)
    assert b"bf16" not in strict.canonical()
    allowed = msgspec.structs.replace(strict, bf16=True)
    assert allowed.id != strict.id
    assert allowed.family != strict.family
    assert msgspec.json.decode(msgspec.json.encode(allowed), type=Workload) == allowed


def test_target_says_what_is_allowed_and_reads_what_it_prints(tmp_path: Path) -> None:
    assert str(BF16) == "cuda,sm_90,bf16"
    both = parse_target("cuda,sm_90,tf32,fp16,bf16")
    assert (both.tf32, both.fp16, both.bf16) == (True, True, True)
    assert parse_target(str(both)) == both
    path = mlp(batch=16).save(tmp_path / "m.onnx")
    for target, allowed in ((BF16, {True}), (parse_target("cuda,sm_90"), {msgspec.UNSET})):
        assert {task.workload.bf16 for task in prepare(path, target).unique_tasks()} == allowed


def test_permissions_in_a_targets_name_reach_a_fleet(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    class Workers:
        target, device = BF16, None

        def __init__(self, address: str, key: str, **options: object) -> None:
            seen.update(options)

    monkeypatch.setattr(fleet, "Fleet", Workers)
    find_place("cuda,tf32,bf16", None, False, False, tracker="localhost:1", key="k", measures=False)
    assert seen == {"threads": None, "allow_tf32": True, "allow_fp16": False, "allow_bf16": True}


def test_blocks_take_bfloat16_by_default_where_it_is_allowed() -> None:
    workload = msgspec.structs.replace(product((32, 32), 2048, 2048, 256), pattern=named("block", (32, 32), 0.05))
    assert candidates_of(workload, BF16).default.template == "cuda.block_bf16"


def test_network_in_bfloat16_is_off_by_no_more_than_its_manifest_says(tmp_path: Path) -> None:
    builder = mlp(batch=9)
    prepared = prepare(builder.save(tmp_path / "m.onnx"), BF16)
    configs = dict.fromkeys(prepared.tasks, Config.of("cuda.dense_bf16", **dict(BASE.knobs)))
    inputs = random_inputs(builder.model())
    found, _ = run_network(prepared.graph, prepared.tasks, configs, BF16, inputs)
    used = [arithmetic_of(config.template) for config in configs.values()]
    for value, wanted in zip(found, run_onnxruntime(builder.model(), inputs).values(), strict=True):
        assert 1e-4 < relative_error(value, wanted) < network_tolerance(used)


@needs_nvcc
@pytest.mark.parametrize(("tile", "warps"), [("32x128", "8-1"), ("64x64", "2-8")])
def test_kernel_compiles_for_sm_90_without_spills(tile: str, warps: str, tmp_path: Path) -> None:
    gelu = Epilogue(bias=True, residual=True, activation="gelu")
    workload = product((32, 32), 64, 64, 64, gelu)
    config = BASE.replace(tile=tile, warps=warps, depth=4)
    packed = BLOCKS.pack(blocks(64, 64, (32, 32)), None, workload, config, TARGET)
    assert nvcc_faults(BLOCKS.kernel(workload, config, packed, TARGET, "kernel"), tmp_path) == "", config
