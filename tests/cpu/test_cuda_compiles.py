"""nvcc compiles the default kernels of all CUDA templates for sm_90 without warnings and without spilled registers."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import msgspec
import numpy as np
import pytest
from cuda_cases import H100, convolution, product, sparse
from ptx import constant_loads
from sparsetvm.schedules.base import matching
from sparsetvm.schedules.cuda.launch import Launch

from sparsetvm.core.layout import HalfTiled
from sparsetvm.core.pattern import PatternSummary
from sparsetvm.core.workload import ConvGeometry, Epilogue, Workload

NVCC = shutil.which("nvcc")
pytestmark = pytest.mark.skipif(NVCC is None, reason="no nvcc here")


def workloads() -> dict[str, tuple[Workload, np.ndarray]]:
    rng = np.random.default_rng(0)
    gelu = Epilogue(bias=True, residual=True, activation="gelu")
    relu = Epilogue(bias=True, activation="relu")
    found = {}
    for n in (1, 8):
        weight = sparse(rng, (512, 512), 0.1)
        found[f"{n} tokens"] = product(n, 512, 512, gelu, weight, plain=True), weight
    weight = sparse(rng, (64, 4096), 0.1)[1:]  # without the full row: all of a row in registers
    found["1 token, long rows"] = product(1, 63, 4096, gelu, weight, plain=True), weight
    halves = weight.astype(np.float16).astype(np.float32)
    found["1 token, long rows, float16 weights"] = product(1, 63, 4096, gelu, halves, plain=True), halves
    sparse_x = product(4, 512, 512, gelu, sparse(rng, (512, 512), 0.1), plain=True)
    found["4 tokens, sparse"] = (
        msgspec.structs.replace(sparse_x, activation_density=0.125),
        sparse(rng, (512, 512), 0.1),
    )
    for n in (32, 1024):
        weight = sparse(rng, (512, 512), 0.1)
        found[f"{n} tokens"] = product(n, 512, 512, gelu, weight), weight
        found[f"{n} tokens, tf32"] = msgspec.structs.replace(found[f"{n} tokens"][0], tf32=True), weight
    weight = np.kron(rng.random((16, 16)) < 0.2, np.ones((32, 32))).astype(np.float32)
    base = product(1024, 512, 512, gelu, weight)
    base = msgspec.structs.replace(base, pattern=PatternSummary("block", (32, 32), 0.2, 1.0, 0, "0"))
    lin, lout = HalfTiled(1024, 512, 1024), HalfTiled(1024, 512, 1024)
    half = msgspec.structs.replace(base, fp16=True, layout_in=lin, layout_out=lout)
    found["1024 tokens, blocks, fp16"] = half, weight
    for side in (14, 56):
        weight = sparse(rng, (64, 9 * 64), 0.1)
        conv = ConvGeometry(64, side, side, (3, 3), pads=(1, 1, 1, 1))
        found[f"3x3 on {side}x{side}"] = convolution(conv, 64, 1, relu, weight), weight
    return found


@pytest.mark.parametrize("name", list(workloads()))
def test_default_kernels_compile_without_spills(name: str, tmp_path: Path) -> None:
    workload, weight = workloads()[name]
    templates = [t for t in matching(workload, H100) if t.name.startswith("cuda.")]
    assert templates
    for template in templates:
        config = template.default(workload, H100)
        packed = template.pack(weight, None, workload, config, H100)
        launch = template.kernel(workload, config, packed, H100, "kernel")
        assert isinstance(launch, Launch)
        if (workload.tf32 or workload.fp16) and template.arithmetic == "float32":
            continue  # compiled without, too
        if launch.text is not None:
            continue  # test_cuda_rows_compile.py has smaller ones: generated code takes nvcc long
        words = compile_sm90(launch, tmp_path / "kernel.cubin")
        assert "warning" not in words, (config, words)
        assert "0 bytes spill stores, 0 bytes spill loads" in words, (config, words)
        if launch.overlaps:
            ptx = (tmp_path / launch.path.with_suffix(".ptx").name).read_text()
            check_overlap(ptx)
            assert constant_loads(ptx, launch) == []


def check_overlap(ptx: str) -> None:
    """The next kernel may start first of all; nothing is written before the previous kernel has ended."""
    start, wait = ptx.index("griddepcontrol.launch_dependents"), ptx.index("griddepcontrol.wait")
    assert start < wait < ptx.index("st.global")
    assert not re.search(r"ld\.global|cp\.async", ptx[:start])


def compile_sm90(launch: Launch, to: Path) -> str:
    macros = [f"-D{name}={value}" for name, value in launch.defines]
    arch = "-gencode=arch=compute_90a,code=sm_90a" if launch.native else "-arch=sm_90"
    command = [str(NVCC), "-std=c++17", "-O3", arch, "-cubin", "-Xptxas", "-v", *macros]
    command += [*(f"-I{folder}" for folder in launch.folders), "--keep", "--keep-dir", str(to.parent)]
    source = launch.path
    if launch.text is not None:
        source = to.parent / launch.path.name
        source.write_text(launch.text)
    done = subprocess.run([*command, str(source), "-o", str(to)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr
