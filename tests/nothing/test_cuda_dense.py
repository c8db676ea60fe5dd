"""The dense CUDA kernels compute what numpy computes in float64, for every tile, split, layout and odd shape."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cuda_remainder_cases import TARGET, check_layer, conv2d, matmul, needs_nvcc, nvcc_faults
from sparsetvm.schedules.cuda.dense import Dense

from sparsetvm.core.config import Config
from sparsetvm.core.workload import ConvGeometry, Epilogue

DENSE = Dense()
BASE = Config.of("cuda.dense", shape="32x32x32-8x4-4-4", split=1)
SHAPES = [str(shape) for shape in DENSE.space(matmul(64, 64, 64), TARGET).knobs[0].values]

CONVOLUTIONS = {
    "1x1": ConvGeometry(13, 5, 7, (1, 1)),
    "3x3": ConvGeometry(5, 7, 7, (3, 3), pads=(1, 1, 1, 1)),
    "3x3_groups": ConvGeometry(6, 5, 6, (3, 3), pads=(1, 1, 1, 1), groups=2),
    "7x7_stride2": ConvGeometry(3, 18, 18, (7, 7), (2, 2), (3, 3, 3, 3)),
    "3x3_dilation": ConvGeometry(2, 9, 8, (3, 3), pads=(2, 2, 2, 2), dilation=(2, 2)),
    "1x1_of_one_pixel": ConvGeometry(9, 1, 1, (1, 1)),
}
EPILOGUES = [
    Epilogue(),
    Epilogue(bias=True, activation="relu"),
    Epilogue(bias=True, residual=True, activation="clip", low=-0.5, high=1.5),
    Epilogue(residual=True, activation="sigmoid"),
    Epilogue(bias=True, activation="gelu"),
]


@pytest.mark.parametrize("number", range(len(SHAPES)), ids=SHAPES)
def test_dense_matches_float64(number: int) -> None:
    config = BASE.replace(shape=SHAPES[number], split=(1, 2, 4, 8)[number // 2 % 4])
    check_layer(DENSE, (matmul(67, 153, 37), conv2d(CONVOLUTIONS["3x3"], 37, batch=2))[number % 2], config)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_dense_convolves(name: str) -> None:
    config = BASE.replace(split=2)
    check_layer(DENSE, conv2d(CONVOLUTIONS[name], 6 if "groups" in name else 34, batch=2, pad=3), config)


@pytest.mark.parametrize("epilogue", EPILOGUES, ids=lambda epilogue: f"{epilogue.activation}-{epilogue.residual}")
def test_dense_finishes_sums(epilogue: Epilogue) -> None:
    check_layer(DENSE, matmul(33, 11, 10, epilogue), BASE)
    check_layer(DENSE, conv2d(CONVOLUTIONS["3x3"], 5, epilogue=epilogue), BASE.replace(split=2))


@pytest.mark.parametrize("k", [1, 31, 32, 33, 130])
def test_dense_sums_few_columns(k: int) -> None:
    for split in (1, 8):
        check_layer(DENSE, matmul(3, k, 9), BASE.replace(split=split))


def test_dense_default_is_a_point_of_its_space_and_fills_the_gpu() -> None:
    for workload in (
        conv2d(ConvGeometry(512, 7, 7, (3, 3), pads=(1, 1, 1, 1)), 512),
        conv2d(ConvGeometry(3, 224, 224, (7, 7), (2, 2), (3, 3, 3, 3)), 64),
        matmul(768, 768, 128),
        matmul(4096, 4096, 4096),
    ):
        config = DENSE.default(workload, TARGET)
        assert DENSE.space(workload, TARGET).contains(config)
        packed = DENSE.pack(np.zeros((workload.m, workload.k), np.float32), None, workload, config, TARGET)
        launch = DENSE.kernel(workload, config, packed, TARGET, "kernel")
        assert launch.grid[0] * launch.grid[1] > TARGET.sms * 0.4
        assert launch.grid[0] % launch.cluster == 0


def test_dense_configs_all_fit_a_block() -> None:
    workload = matmul(64, 64, 64)
    packed = DENSE.pack(np.zeros((64, 64), np.float32), None, workload, BASE, TARGET)
    for config in DENSE.space(workload, TARGET):
        launch = DENSE.kernel(workload, config, packed, TARGET, "kernel")
        assert 32 <= launch.block <= 512
        assert launch.shared <= TARGET.shared


def test_dense_default_splits_k_only_where_blocks_are_few() -> None:
    assert DENSE.default(matmul(4096, 4096, 4096), TARGET).int("split") == 1
    assert DENSE.default(matmul(768, 3072, 128), TARGET).int("split") > 1


@needs_nvcc
@pytest.mark.parametrize("shape", SHAPES)
def test_dense_compiles_for_sm_90_without_spills(shape: str, tmp_path: Path) -> None:
    number = SHAPES.index(shape)
    epilogue = Epilogue(bias=True, residual=True, activation="relu")
    workload = (matmul(64, 64, 64, epilogue), conv2d(CONVOLUTIONS["3x3"], 8, epilogue=epilogue))[number % 2]
    config = BASE.replace(shape=shape, split=(4, 1)[number // 2 % 2])
    packed = DENSE.pack(np.zeros((workload.m, workload.k), np.float32), None, workload, config, TARGET)
    assert nvcc_faults(DENSE.kernel(workload, config, packed, TARGET, "kernel"), tmp_path) == ""
