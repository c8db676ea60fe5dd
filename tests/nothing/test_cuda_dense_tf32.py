"""The TF32 kernel computes, of factors rounded to TF32, what numpy computes in float64; it never passes for float32."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from cuda_remainder_cases import TARGET, check_layer, conv2d, launch_layer, matmul, needs_nvcc, nvcc_faults, run_layer
from sparsetvm.schedules.cuda.dense import Dense
from sparsetvm.schedules.cuda.dense_tf32 import DenseTf32

from sparsetvm.core.arithmetic import TOLERANCES, network_tolerance, round_to_tf32
from sparsetvm.core.config import Config
from sparsetvm.core.workload import ConvGeometry, Epilogue, Workload
from sparsetvm.measure.verdict import judge

TF32 = DenseTf32()
SHAPES = [str(shape) for shape in TF32.space(matmul(64, 64, 64), TARGET).knobs[0].values]
BASE = Config.of("cuda.dense_tf32", shape=SHAPES[0], split=1)
THREE = ConvGeometry(5, 7, 7, (3, 3), pads=(1, 1, 1, 1))
CONVOLUTIONS = {
    "1x1": ConvGeometry(13, 5, 7, (1, 1)),
    "3x3_groups": ConvGeometry(6, 5, 6, (3, 3), pads=(1, 1, 1, 1), groups=2),
    "7x7_stride2": ConvGeometry(3, 18, 18, (7, 7), (2, 2), (3, 3, 3, 3)),
}
FULL = Epilogue(bias=True, residual=True, activation="relu")


def allowed(workload: Workload) -> Workload:
    return msgspec.structs.replace(workload, tf32=True)


@pytest.mark.parametrize("number", range(len(SHAPES)), ids=SHAPES)
def test_tf32_matches_float64(number: int) -> None:
    config = BASE.replace(shape=SHAPES[number], split=(1, 2, 4, 8)[number // 2 % 4])
    workload = (matmul(67, 153, 37, FULL), conv2d(THREE, 37, batch=2, epilogue=FULL))[number % 2]
    check_layer(TF32, allowed(workload), config)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_tf32_convolves(name: str) -> None:
    workload = conv2d(CONVOLUTIONS[name], 6 if "groups" in name else 34, batch=2, pad=3)
    check_layer(TF32, allowed(workload), BASE.replace(split=2))


@pytest.mark.parametrize("k", [1, 31, 32, 33, 130])
def test_tf32_sums_few_columns(k: int) -> None:
    for split in (1, 8):
        check_layer(TF32, allowed(matmul(3, k, 9)), BASE.replace(split=split))


def test_tf32_multiplies_rounded_factors_exactly() -> None:
    """Small whole numbers survive the rounding: a factor that meets another partner would show at any tolerance."""
    workload = allowed(matmul(70, 40, 50, Epilogue()))
    rng = np.random.default_rng(0)
    x = rng.integers(-9, 9, (50, 40)).astype(np.float32)
    weight = rng.integers(-9, 9, (70, 40)).astype(np.float32)
    for shape in ("32x32x32-16x32-4-4", "64x64x32-32x32-2-3", "128x128x16-64x64-1-4"):
        y = launch_layer(TF32, workload, BASE.replace(shape=shape), weight, None, [workload.layout_in.to_physical(x)])
        np.testing.assert_array_equal(workload.layout_out.to_logical(y, (50, 70)), x @ weight.T)


def test_tf32_never_passes_for_float32_and_is_off_by_3e_4() -> None:
    workload = allowed(matmul(64, 256, 64))
    error = check_layer(TF32, workload, BASE)
    assert 1e-4 < error < 5e-4
    strict = check_layer(Dense(), workload, Config.of("cuda.dense", shape="32x32x32-8x4-4-4", split=1))
    assert strict < TOLERANCES["float32"] / 10


def test_verdict_takes_the_tolerance_of_the_template() -> None:
    workload = allowed(matmul(64, 256, 64))
    reference, y = run_layer(TF32, workload, BASE)
    assert judge(reference, y, TF32.tolerance).status == "ok"
    assert judge(reference, y, Dense().tolerance).status == "wrong_answer"
    y = y.copy()
    y.reshape(64, 64)[7] *= 1.01  # a row that is off by more than rounding explains
    assert "row 7" in judge(reference, y, TF32.tolerance).message


def test_rounding_is_to_ten_bits_and_halves_go_away_from_zero() -> None:
    step = 2.0**-10
    values = np.array([1 + step / 2, -1 - step / 2, 1 + step / 2.01, 3.0, 0.0, np.inf, -np.inf, np.nan], np.float32)
    expected = np.array([1 + step, -1 - step, 1.0, 3.0, 0.0, np.inf, -np.inf, np.nan], np.float32)
    np.testing.assert_array_equal(round_to_tf32(values), expected)


def test_networks_may_be_off_by_as_many_roundings_as_they_have_tf32_layers() -> None:
    assert network_tolerance(["float32"] * 5) == 1e-5
    assert network_tolerance(["tf32", "float32"]) == 1e-3
    assert network_tolerance(["tf32"] * 9) == pytest.approx(3e-3)


def test_tf32_matches_only_where_it_is_allowed() -> None:
    workload = matmul(64, 64, 64)
    assert not TF32.matches(workload, TARGET)
    assert TF32.matches(allowed(workload), TARGET)


def test_tf32_default_is_a_point_of_its_space_and_fills_the_gpu() -> None:
    for workload in (
        conv2d(ConvGeometry(512, 7, 7, (3, 3), pads=(1, 1, 1, 1)), 512),
        matmul(768, 3072, 128),
        matmul(768, 768, 512),
    ):
        config = TF32.default(allowed(workload), TARGET)
        assert TF32.space(workload, TARGET).contains(config)
        packed = TF32.pack(np.zeros((workload.m, workload.k), np.float32), None, workload, config, TARGET)
        launch = TF32.kernel(workload, config, packed, TARGET, "kernel")
        assert launch.grid[0] * launch.grid[1] > TARGET.sms * 0.4
        assert launch.grid[0] % launch.cluster == 0


def test_tf32_default_splits_k_only_where_blocks_are_few() -> None:
    assert TF32.default(matmul(4096, 4096, 4096), TARGET).int("split") == 1
    assert TF32.default(matmul(768, 3072, 128), TARGET).int("split") > 1


def test_tf32_configs_all_fit_a_block() -> None:
    workload = matmul(64, 64, 64)
    packed = TF32.pack(np.zeros((64, 64), np.float32), None, workload, BASE, TARGET)
    for config in TF32.space(workload, TARGET):
        launch = TF32.kernel(workload, config, packed, TARGET, "kernel")
        assert 32 <= launch.block <= 512
        assert launch.shared <= TARGET.shared


def test_tf32_space_leaves_out_what_a_smaller_gpu_cannot_hold() -> None:
    small = msgspec.structs.replace(TARGET, shared=99 << 10)  # sm_86, sm_89
    workload = allowed(matmul(4096, 4096, 4096))
    config = TF32.default(workload, small)
    assert len(list(TF32.space(workload, small))) == len(SHAPES) * 4 - 4
    assert config.str("shape") != "128x128x32-64x32-1-3"


@needs_nvcc
@pytest.mark.parametrize("shape", SHAPES)
def test_tf32_compiles_for_sm_90_without_spills(shape: str, tmp_path: Path) -> None:
    number = SHAPES.index(shape)
    workload = (matmul(64, 64, 64, FULL), conv2d(THREE, 8, epilogue=FULL))[number % 2]
    config = BASE.replace(shape=shape, split=(4, 1)[number // 2 % 2])
    packed = TF32.pack(np.zeros((workload.m, workload.k), np.float32), None, workload, config, TARGET)
    assert nvcc_faults(TF32.kernel(workload, config, packed, TARGET, "kernel"), tmp_path) == ""
