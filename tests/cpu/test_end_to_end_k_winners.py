"""Networks with k-winners: the outputs of the dense network for every input, ties and empty ones included."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from end_to_end import assert_same_outputs
from models import ModelBuilder, run_onnxruntime

import sparsetvm
from sparsetvm.core.target import cpu_flags

pytestmark = pytest.mark.skipif("avx2" not in cpu_flags(), reason="needs AVX2")


def k_winners(b: ModelBuilder, x: str, n: int, k: int) -> str:
    values = b.op("TopK", x, b.const(np.array([k])), axis=1)
    b.nodes[-1].output.append(f"{values}.at")
    return b.op("ScatterElements", b.const(np.zeros((1, n), np.float32)), f"{values}.at", values, axis=1)


def network() -> ModelBuilder:
    """A convolution, winners of all its pixels, a sparse hidden layer with winners, and a classifier."""
    b = ModelBuilder("winners", seed=5)
    x = b.op("MaxPool", b.conv(b.input("x", (1, 1, 12, 12)), 1, 8), kernel_shape=[2, 2], strides=[2, 2])
    flat = b.op("Reshape", x, b.const(np.array([1, 288])))
    hidden = b.linear(k_winners(b, flat, 288, 30), 288, 200, sparsity=0.9)
    b.op("Identity", b.linear(k_winners(b, hidden, 200, 20), 200, 70, sparsity=0.8), out="y")
    return b.output("y")


def inputs() -> dict[str, np.ndarray]:
    normal = np.random.default_rng(0).standard_normal((1, 1, 12, 12)).astype(np.float32)
    return {
        "random": normal,
        "empty": np.zeros_like(normal),
        "equal": np.ones_like(normal),
        "large": 1e30 * normal,
        "subnormal": 1e-40 * normal,
        "one pixel": np.where(np.arange(144).reshape(normal.shape) == 77, normal, 0),
    }


def test_outputs_are_those_of_the_dense_network(tmp_path: Path) -> None:
    builder = network()
    model, library = builder.save(tmp_path / "m.onnx"), tmp_path / "m.so"
    report = sparsetvm.compile(model, library, threads=1, log_dir=tmp_path, reuse=False)
    if "avx512f" in cpu_flags():
        assert sum("x86.spmv_columns" in str(layer["config"]) for layer in report.layers) == 2
    with sparsetvm.load(library) as module:
        assert not [kernel for kernel in module.manifest["kernels"] if kernel["op"] in ("TopK", "ScatterElements")]
        for x in inputs().values():
            assert_same_outputs(module.run({"x": x}), run_onnxruntime(builder.model(), {"x": x}))
