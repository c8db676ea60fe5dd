"""What the tests of CUDA kernels share: a target, workloads, kernels run on the emulator and compiled by nvcc."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from emulator import run_launch
from ptx import constant_loads
from sparsetvm.schedules.base import Template
from sparsetvm.schedules.cuda.launch import Launch

from sparsetvm.core.config import Config
from sparsetvm.core.layout import PLAIN, Tiled
from sparsetvm.core.pattern import PatternSummary
from sparsetvm.core.target import Target
from sparsetvm.core.workload import ConvGeometry, Epilogue, Workload
from sparsetvm.measure.reference import Reference, inputs_of, make_reference
from sparsetvm.rewrite.plane_geometry import conv_layouts, required_pad

TARGET = Target("cuda", "x86-64-v3", "sm_90", l2=50 << 20, sms=132, shared=227 << 10)
NVCC = shutil.which("nvcc")
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="no nvcc here")
WITH_BIAS = Epilogue(bias=True)
_PATTERN = PatternSummary("dense", (1, 1), 1.0, 1.0, 0, "d")


def matmul(m: int, k: int, n: int, epilogue: Epilogue = WITH_BIAS, plain: bool = False) -> Workload:
    """A product of n tokens as the CUDA target lays it out: one tile of tokens, or plain."""
    lanes = -(-n // 4) * 4
    lin, lout = (PLAIN, PLAIN) if plain else (Tiled(n, k, lanes), Tiled(n, m, lanes))
    return Workload("matmul", m, k, n, lin, lout, epilogue, _PATTERN)


def conv2d(conv: ConvGeometry, m: int, batch: int = 1, epilogue: Epilogue = WITH_BIAS, pad: int = 0) -> Workload:
    """A convolution between planes whose output has at least `pad` zero columns."""
    lin, lout = conv_layouts(conv, batch, m, max(pad, required_pad(conv)), TARGET.lanes)
    k = conv.in_channels // conv.groups * conv.kernel[0] * conv.kernel[1]
    return Workload("conv2d", m, k, batch * conv.out_height * conv.out_width, lin, lout, epilogue, _PATTERN, conv)


def check_layer(template: Template, workload: Workload, config: Config, seed: int = 0) -> float:
    """Run one config on the emulator and compare with float64, zeros included; the relative L2 error."""
    assert template.matches(workload, TARGET)
    assert template.space(workload, TARGET).contains(config)
    reference, y = run_layer(template, workload, config, seed)
    assert reference.fault(y, template.tolerance) == ""
    assert reference.error(y) < template.tolerance, config
    return reference.error(y)


def run_layer(template: Template, workload: Workload, config: Config, seed: int = 0) -> tuple[Reference, np.ndarray]:
    """A reference of random weights and what one config makes of its inputs."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((workload.m, workload.k)).astype(np.float32)
    bias = rng.standard_normal(workload.m).astype(np.float32) if workload.epilogue.bias else None
    reference = make_reference(workload, weight, bias, seed)
    return reference, launch_layer(template, workload, config, weight, bias, inputs_of(reference))


def launch_layer(
    template: Template, workload: Workload, config: Config, weight: np.ndarray, bias: np.ndarray | None,
    inputs: list[np.ndarray],
) -> np.ndarray:  # fmt: skip
    """Physical Y of one config on the emulator; it starts as NaN, so that a value that was never written shows."""
    packed = template.pack(weight, bias, workload, config, TARGET)
    launch = template.kernel(workload, config, packed, TARGET, "kernel")
    kind = np.float16 if workload.layout_out.half else np.float32
    y = np.full(workload.layout_out.physical_shape((workload.n, workload.m)), np.nan, kind)
    run_launch(launch, [*inputs, *packed.arrays, y])
    return y


def nvcc_faults(launch: Launch, folder: Path) -> str:
    """What is wrong with a launch, compiled for sm_90; "" when all is well.

    Errors, warnings, spilled registers, activations that are read as constants.
    """
    macros = [f"-D{name}={value}" for name, value in launch.defines]
    arch = "-gencode=arch=compute_90a,code=sm_90a" if launch.native else "-arch=sm_90"
    command = [
        str(NVCC),
        "-std=c++17",
        arch,
        "-cubin",
        "-Werror",
        "all-warnings",
        "-Xptxas",
        "-v,-warn-spills",
        "--keep",
        f"--keep-dir={folder}",
    ]
    source = launch.path
    if launch.text is not None:
        source = folder / launch.path.name
        source.write_text(launch.text)
    includes = [f"-I{place}" for place in launch.folders]
    done = subprocess.run(
        [*command, *macros, *includes, str(source), "-o", str(folder / "kernel.cubin")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = done.stdout + done.stderr
    spilled = [line for line in said.splitlines() if re.search(r"[1-9]\d* bytes (spill|stack)", line)]
    warned = [line for line in said.splitlines() if "warning" in line.lower()]
    if done.returncode:
        return said
    assert f"'{launch.entry}'" in said
    constant = constant_loads((folder / f"{source.stem}.ptx").read_text(), launch) if launch.overlaps else []
    return "\n".join(spilled + warned + [f"{register} is read by ld.global.nc" for register in constant])


def run_remainder(
    launch: Launch, inputs: list[np.ndarray], shape: tuple[int, ...], kind: type = np.float32
) -> np.ndarray:
    """Run on the emulator; the output starts as NaN, so that a value that was never written shows. kind: of Y.

    Integers are tables (int32), everything else is float32.
    """
    y = np.full(shape, np.nan, kind)
    run_launch(launch, [*(np.ascontiguousarray(a, np.int32 if a.dtype.kind == "i" else np.float32) for a in inputs), y])
    return y
