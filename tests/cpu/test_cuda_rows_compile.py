"""nvcc compiles cuda.spmm_rows and cuda.spmm_code for sm_90 without warnings and without spilling registers."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from cuda_cases import H100, convolution, product, sparse
from sparsetvm.schedules.base import template
from sparsetvm.schedules.cuda import launch as launch_module

from sparsetvm.core.config import Config
from sparsetvm.core.workload import ConvGeometry, Epilogue, Workload

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc here")
EPILOGUE = Epilogue(bias=True, residual=True, activation="gelu")
ROWS = {
    "nt": 32,
    "c": 4,
    "unroll": 4,
    "rows": 64,
    "warps": 32,
    "parts": 4,
    "slices": 1,
    "x": "rotated",
    "entries": "ring",
}
POINTS = {
    "many warps": Config.of("cuda.spmm_rows", **ROWS),
    "wide rows": Config.of(
        "cuda.spmm_rows", **{**ROWS, "nt": 64, "c": 8, "parts": 1, "entries": "direct", "warps": 16}
    ),
    "long batches": Config.of("cuda.spmm_rows", **{**ROWS, "unroll": 8, "warps": 16, "x": "shared"}),
    "code": Config.of("cuda.spmm_code", rows=32, groups=1, threads=128, v=1, stage=0),
    "staged code": Config.of("cuda.spmm_code", rows=8, groups=8, threads=128, v=1, stage=16),
}


def workloads() -> list[tuple[Workload, np.ndarray]]:
    rng = np.random.default_rng(0)
    weight, kernel = sparse(rng, (128, 96), 0.1), sparse(rng, (64, 72), 0.1)
    conv = ConvGeometry(8, 14, 14, (3, 3), pads=(1, 1, 1, 1))
    return [(product(132, 128, 96, EPILOGUE, weight), weight), (convolution(conv, 64, 1, EPILOGUE, kernel), kernel)]


@pytest.mark.parametrize("name", POINTS)
def test_kernel_compiles_without_warnings_or_spills(name: str, tmp_path: Path) -> None:
    chosen = template(POINTS[name].template)
    for workload, weight in workloads():
        packed = chosen.pack(weight, None, workload, POINTS[name], H100)
        made = chosen.kernel(workload, POINTS[name], packed, H100, "kernel")
        source = made.path
        if made.text is not None:
            source = tmp_path / "kernel.cu"
            source.write_text(made.text)
        macros = [f"-D{macro}={value}" for macro, value in made.defines]
        command = [
            *("nvcc", "-std=c++17", "-arch=sm_90", "-cubin", "-Xptxas", "-v", "-Werror", "all-warnings", *macros),
            *(f"-I{Path(launch_module.__file__).parent}", str(source), "-o", str(tmp_path / "kernel.cubin")),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert " 0 bytes spill stores, 0 bytes spill loads" in done.stderr, done.stderr
