"""Block patterns for the competitor in Triton, and who is asked to compete on a GPU."""

from __future__ import annotations

import bench_kernels
import numpy as np
import pytest
from benchlib.block_csr import BLOCK_COMPETITORS, block_csr, tensor_core_block
from benchlib.case import matmul_task
from benchlib.suites import random_weight

from sparsetvm.core.target import parse_target
from sparsetvm.errors import EnvironmentProblem, UsageError


def block_of(pattern: str, shape: tuple[int, int] = (128, 192)) -> tuple[int, int] | None:
    weight = random_weight(shape, 0.8, 0, pattern)
    return tensor_core_block(matmul_task("p", 128, lambda: weight, parse_target("cuda,sm_90")).workload)


def test_blocks_multiply_as_the_matrix_does() -> None:
    rng = np.random.default_rng(0)
    weight = random_weight((96, 128), 0.7, 1, "block:32x16")
    weight[32:64] = 0  # a row of blocks without any
    csr = block_csr(weight, (32, 16))
    assert csr.values.shape[1:] == (32, 16)
    assert len(csr.values) == len(csr.columns) == csr.starts[-1] < 3 * 8
    x = rng.standard_normal((128, 5))
    y = np.zeros((96, 5))
    for row, (first, stop) in enumerate(zip(csr.starts, csr.starts[1:], strict=False)):
        for block, column in zip(csr.values[first:stop], csr.columns[first:stop], strict=True):
            y[row * 32 : row * 32 + 32] += block @ x[column * 16 : column * 16 + 16]
    np.testing.assert_allclose(y, weight @ x, atol=1e-12)


def test_only_whole_blocks_that_tensor_cores_take_count() -> None:
    assert block_of("block:16x16") == (16, 16)
    assert block_of("block:32x32") == (32, 32)
    assert block_of("block:16x8") is None
    assert block_of("unstructured") is None
    assert block_of("block:32x32", (112, 192)) != (32, 32)  # the last row of blocks is cut off


def test_competitors_on_a_gpu_are_those_that_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    here = {"torch": "2", "triton": "3"}
    monkeypatch.setattr(bench_kernels, "version_of", lambda name: here.get(name, "missing"))
    assert bench_kernels.parse_gpu_names("triton-block,cusparse") == ["triton-block", "cusparse"]
    assert set(BLOCK_COMPETITORS) < set(bench_kernels.parse_gpu_names(None))
    with pytest.raises(UsageError, match="did you mean 'triton-block'"):
        bench_kernels.parse_gpu_names("triton-blok")
    del here["triton"]
    assert bench_kernels.parse_gpu_names(None) == ["torch-fp32", "torch-tf32", "torch-fp16", "cusparse", "torch-2:4"]
    with pytest.raises(EnvironmentProblem, match=r"triton is not installed[\s\S]*leave out triton-block"):
        bench_kernels.parse_gpu_names("torch-fp32,triton-block")
    del here["torch"]
    assert bench_kernels.parse_gpu_names(None) == []
