"""What tests on a GPU share, and why they are skipped without one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from models import ModelBuilder, random_inputs, relative_error, run_onnxruntime

import sparsetvm
from sparsetvm.core.target import parse_target
from sparsetvm.errors import SparseTvmError

TOLERANCE = 1e-5


def why_not() -> str:
    """Why these tests cannot run here, "" where they can."""
    try:
        parse_target("cuda")
    except SparseTvmError as problem:
        return f"needs an NVIDIA GPU: {problem.message}"
    return ""


needs_gpu = pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")


@dataclass(frozen=True)
class Compiled:
    """A library with default kernels, inputs for it and what ONNX Runtime computes from them."""

    path: Path
    inputs: dict[str, np.ndarray]
    expected: dict[str, np.ndarray]

    def check(self, found: dict[str, np.ndarray]) -> None:
        assert found.keys() == self.expected.keys()
        for name, value in self.expected.items():
            assert relative_error(found[name], value) < TOLERANCE, name


def compiled(builder: ModelBuilder, folder: Path, target: str = "cuda") -> Compiled:
    path = folder / f"{builder.name}.so"
    model = builder.save(folder / f"{builder.name}.onnx")
    sparsetvm.compile(model, path, target=target, log_dir=folder / "log", reuse=False)
    inputs = random_inputs(builder.model())
    return Compiled(path, inputs, run_onnxruntime(builder.model(), inputs))
