"""The dense CUDA product of few tokens computes what numpy computes in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cuda_remainder_cases import TARGET, check_layer, matmul, needs_nvcc, nvcc_faults
from sparsetvm.schedules.cuda.dense_gemv import DenseGemv

from sparsetvm.core.config import Config
from sparsetvm.core.workload import Epilogue

GEMV = DenseGemv()


@pytest.mark.parametrize(("n", "rows", "split"), [(1, 1, 1), (1, 1, 8), (3, 2, 4), (8, 4, 2)])
def test_gemv_matches_float64(n: int, rows: int, split: int) -> None:
    config = Config.of("cuda.dense_gemv", rows=rows, split=split)
    epilogue = Epilogue(bias=True, residual=n > 1, activation="gelu" if n > 3 else "none")
    for m, k in ((37, 4), (5, 1208), (67, 512)):
        check_layer(GEMV, matmul(m, k, n, epilogue, plain=True), config)
    for m, k in ((19, 1), (13, 131)):
        check_layer(GEMV, matmul(m, k, n, epilogue, plain=True), config)


@needs_nvcc
@pytest.mark.parametrize(("n", "rows"), [(1, 1), (8, 4)])
def test_gemv_compiles_for_sm_90_without_spills(n: int, rows: int, tmp_path: Path) -> None:
    for k in (64, 63):
        workload = matmul(64, k, n, Epilogue(residual=True), plain=True)
        config = Config.of("cuda.dense_gemv", rows=rows, split=2)
        packed = GEMV.pack(np.zeros((64, k), np.float32), None, workload, config, TARGET)
        assert nvcc_faults(GEMV.kernel(workload, config, packed, TARGET, "kernel"), tmp_path) == ""


def test_gemv_default_splits_short_and_wide_matrices() -> None:
    for m, k, split in ((1000, 2048, 4), (768, 768, 8), (16384, 4096, 4), (16384, 512, 1)):
        assert GEMV.default(matmul(m, k, 1, plain=True), TARGET).int("split") == split
