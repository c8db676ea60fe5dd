"""Networks with k-winners: the outputs of the dense network for every input, ties and empty ones included."""

from __future__ import annotations

from pathlib import Path

import pytest
from end_to_end import assert_same_outputs
from k_winners_cases import inputs, network
from models import run_onnxruntime

import sparsetvm
from sparsetvm.core.target import cpu_flags

pytestmark = pytest.mark.skipif("avx2" not in cpu_flags(), reason="needs AVX2")


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
