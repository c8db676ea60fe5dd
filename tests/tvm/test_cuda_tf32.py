"""Networks compiled for a GPU that may use TF32: the manifest says which layers do, and how far results may be off."""

from __future__ import annotations

import json

import pytest
from cuda_tools import needs_c_compiler, needs_cuda_compiler
from models import ModelBuilder

import sparsetvm
from sparsetvm.measure import nvcc

pytestmark = [needs_cuda_compiler, needs_c_compiler]


@pytest.mark.parametrize("allowed", [True, False])
def test_manifest_says_which_layers_compute_in_tf32(allowed, tmp_path, monkeypatch):
    monkeypatch.setattr(nvcc, "cubin_folder", lambda: tmp_path / "cubin")
    builder = ModelBuilder()
    model = builder.output(builder.gemm(builder.input("x", (32, 64)), 64, 48)).save(tmp_path / "m.onnx")
    library = tmp_path / "m.so"
    report = sparsetvm.compile(model, library, target="cuda,sm_90", log_dir=tmp_path, allow_tf32=allowed)
    manifest = json.loads((tmp_path / "m.so.json").read_text())
    (layer,) = manifest["layers"]
    expected = ("tf32", 1e-3) if allowed else ("float32", 1e-5)
    assert (layer["arithmetic"], manifest["tolerances"]["rel_l2_error"]) == expected
    assert manifest["target"]["tf32"] is allowed
    assert (report.target, report.layers[0]["arithmetic"]) == ("cuda,sm_90" + ",tf32" * allowed, expected[0])
