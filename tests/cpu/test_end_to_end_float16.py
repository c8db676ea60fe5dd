"""Float16 models from the file to the outputs: their own types at the interface, float32 in between."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from float16 import half_inputs, rounded, to_float16
from graph_eval import evaluate
from models import ModelBuilder, bert, conv_net, mlp, relative_error, run_onnxruntime
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

import sparsetvm
from sparsetvm.core.manifest import FLOAT16_TOLERANCE
from sparsetvm.core.target import parse_target
from sparsetvm.errors import UsageError
from sparsetvm.frontend.load import load_model
from sparsetvm.rewrite.prepare import prepare

NETWORKS = {
    "mlp": lambda: mlp(batch=3),
    "residual network": lambda: conv_net(batch=2, size=9),
    "encoder": lambda: bert(seq=16),
}


def compiled(model: onnx.ModelProto, folder: Path, **options: object) -> tuple[Path, Path]:
    """(model file, library), with default configs."""
    source, library = folder / "m.onnx", folder / "m.so"
    onnx.save(model, source)
    sparsetvm.compile(source, library, log_dir=folder / "log", reuse=False, **options)
    return source, library


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("keep_io", [False, True])
def test_float16_network_is_as_exact_as_float32(name, keep_io, tmp_path):
    builder = rounded(NETWORKS[name]())
    model = to_float16(builder.model(), keep_io=keep_io, blocked=("Softmax",))
    exact = load_model(builder.save(tmp_path / "exact.onnx")).graph
    source, library = compiled(model, tmp_path)
    inputs = half_inputs(model)
    expected = evaluate(exact, {at: array.astype(np.float64) for at, array in inputs.items()})
    with sparsetvm.load(library) as module:
        found = module.run(inputs)
        assert [info.dtype for info in module.inputs] == [str(array.dtype) for array in inputs.values()]
    reference = run_onnxruntime(model, inputs)
    for at, wanted in expected.items():
        assert found[at].dtype == reference[at].dtype
        # float16 outputs are rounded once; the bent constants of a GELU are taken for what they mean.
        assert relative_error(found[at], wanted) < (3e-5 if keep_io else 3e-4)
    report = sparsetvm.verify(library, source, samples=2)
    assert report.passed
    assert report.tolerance == FLOAT16_TOLERANCE
    assert "computes in float32" in report.notes[0]


def test_manifest_says_what_a_float16_model_is(tmp_path):
    _, library = compiled(to_float16(mlp().model()), tmp_path)
    manifest = json.loads(library.with_name("m.so.json").read_text())
    assert manifest["model"]["arithmetic"] == "float16"
    assert manifest["tolerances"] == {"rel_l2_error": FLOAT16_TOLERANCE}
    assert manifest["inputs"][0]["dtype"] == manifest["outputs"][0]["dtype"] == "float16"


def test_module_takes_float16_arrays_and_says_so(tmp_path):
    _, library = compiled(to_float16(mlp(batch=2).model()), tmp_path)
    with sparsetvm.load(library) as module:
        inputs = module.random_inputs()
        assert inputs["x"].dtype == np.float16
        first = module.run(inputs)["logits"]
        np.testing.assert_array_equal(module(inputs["x"]), first)
        assert module.benchmark(seconds=0.0, repeats=1).median > 0
        with pytest.raises(UsageError, match="expected float16, given float32"):
            module.run({"x": inputs["x"].astype(np.float32)})


@pytest.mark.parametrize("target", ["cpu,haswell", "cpu,x86-64-v4"])
def test_conversions_need_nothing_that_the_linker_could_miss(target, tmp_path):
    model = to_float16(rounded(mlp()).model())
    _, library = compiled(model, tmp_path, target=target)
    inputs = half_inputs(model)
    with sparsetvm.load(library) as module:
        assert relative_error(module.run(inputs)["logits"], run_onnxruntime(model, inputs)["logits"]) < 2e-3


def test_batch_in_chunks_converts_each(tmp_path, monkeypatch):
    monkeypatch.setattr("sparsetvm.rewrite.split_batch._CHUNK_BYTES", 40000)
    builder = rounded(conv_net(batch=4))
    model = to_float16(builder.model())
    source, library = compiled(model, tmp_path, threads=1)
    assert prepare(source, parse_target("cpu", 1)).graph.chunks > 1
    inputs = half_inputs(model)
    expected = run_onnxruntime(builder.model(), {at: array.astype(np.float32) for at, array in inputs.items()})
    with sparsetvm.load(library) as module:
        assert relative_error(module.run(inputs)["logits"], expected["logits"]) < 6e-4


class Float16Session:
    """What `verify` uses of a session, computed in float16 operator by operator. (ONNX Runtime on x86 widens them.)"""

    def __init__(self, model: Path, threads: int) -> None:
        self._evaluator = ReferenceEvaluator(str(model))
        graph = onnx.load(model).graph
        self.get_inputs = lambda: [
            SimpleNamespace(name=info.name, shape=[1, 8], type="tensor(float16)") for info in graph.input
        ]
        self.get_outputs = lambda: graph.output

    def run(self, names: None, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        with np.errstate(over="ignore"):
            return self._evaluator.run(names, inputs)


def test_verify_says_that_the_reference_overflows(tmp_path, monkeypatch):
    b = ModelBuilder()
    x = b.input("x", (1, 8), TensorProto.FLOAT16)
    big = b.op("MatMul", b.op("Abs", x), b.const(np.full((8, 4), 60000, np.float16)))
    b.op("Mul", big, b.const(np.float16(1e-4)), out="y")
    source, library = compiled(b.output("y").model(), tmp_path)
    monkeypatch.setattr("sparsetvm.runtime.verify.onnxruntime_session", Float16Session)
    report = sparsetvm.verify(library, source, samples=1)
    assert not report.passed
    assert "overflows float16 (65504) in 'y'" in report.notes[1]


def test_verify_names_the_type_of_another_model(tmp_path):
    _, library = compiled(to_float16(mlp().model()), tmp_path)
    wide = mlp().save(tmp_path / "wide.onnx")
    with pytest.raises(UsageError, match="input 'x' of type float32, not float16"):
        sparsetvm.verify(library, wide)


def test_bench_times_a_float16_model_beside_its_reference(tmp_path):
    source, library = compiled(to_float16(mlp().model()), tmp_path)
    report = sparsetvm.bench(library, against=("ort", "dense"), seconds=0.01, reference_model=source)
    assert set(report.against) == {"ort", "dense"}


def test_pruning_keeps_float16(tmp_path):
    onnx.save(to_float16(mlp(sizes=(64, 64, 64), sparsity=0).model()), tmp_path / "m.onnx")
    report = sparsetvm.prune(tmp_path / "m.onnx", tmp_path / "pruned.onnx", sparsity=0.9)
    assert report.sparsity > 0.85
    weights = onnx.load(tmp_path / "pruned.onnx").graph.initializer
    assert all(tensor.data_type == TensorProto.FLOAT16 for tensor in weights)
    layers = sparsetvm.inspect(tmp_path / "pruned.onnx").layers
    assert [layer.pattern for layer in layers] == ["unstructured"] * 2
