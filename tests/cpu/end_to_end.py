"""What the end-to-end tests share: compile a small model with default kernels and compare it with ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from models import ModelBuilder, random_inputs, relative_error, run_onnxruntime

import sparsetvm

TOLERANCE = 1e-5


def compile_default(builder: ModelBuilder, folder: Path, *, threads: int = 1) -> Path:
    """The library of the model with the default config of every layer, whatever was ever tuned here."""
    library = folder / f"{builder.name}.so"
    model = builder.save(folder / f"{builder.name}.onnx")
    sparsetvm.compile(model, library, threads=threads, log_dir=folder / "log", reuse=False)
    return library


def run_library(library: Path, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    with sparsetvm.load(library) as module:
        return module.run(inputs)


def assert_same_outputs(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].shape == value.shape
        assert relative_error(found[name], value) <= TOLERANCE, name


def check_against_onnxruntime(builder: ModelBuilder, folder: Path, *, threads: int = 1) -> None:
    """Compile, run on random inputs and compare all outputs."""
    inputs = random_inputs(builder.model())
    found = run_library(compile_default(builder, folder, threads=threads), inputs)
    assert_same_outputs(found, run_onnxruntime(builder.model(), inputs))
