"""`--calibrate`: what layers read on sample inputs decides which kernels compete, never what is right."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from models import ModelBuilder, bert, relative_error, run_onnxruntime

import sparsetvm
from sparsetvm.core.target import cpu_flags, host_target, parse_target
from sparsetvm.errors import UsageError
from sparsetvm.rewrite.prepare import prepare
from sparsetvm.rewrite.workloads import make_tasks
from sparsetvm.runtime.calibrate import measure_densities

pytestmark = pytest.mark.skipif("avx512f" not in cpu_flags(), reason="needs AVX-512")
TARGET = host_target(1)


def network(batch: int | str = 1) -> ModelBuilder:
    """Two sparse products with a ReLU between them, whose bias leaves about one value in seven."""
    b = ModelBuilder("sparse_activations", seed=1)
    hidden = b.op("Add", b.linear(b.input("x", (batch, 64)), 64, 256, sparsity=0.8), b.const(np.float32(-3.5)))
    b.op("Identity", b.linear(b.op("Relu", hidden), 256, 96, sparsity=0.9), out="y")
    return b.output("y")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return network().save(tmp_path / "model.onnx")


def samples(count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 1, 64)).astype(np.float32)


def test_zeros_are_counted_as_the_model_has_them(model: Path) -> None:
    x = samples(3)
    x[:, :, ::4] = 0
    first, second = measure_densities(model, TARGET, None, {"x": x}).values()
    assert first == pytest.approx(0.75)
    hidden = [run_onnxruntime(_up_to_relu(network()), {"x": one})["h"] for one in x]
    assert second == pytest.approx(np.mean([np.count_nonzero(h) / h.size for h in hidden]))


def _up_to_relu(builder: ModelBuilder):
    model = builder.model()
    relu = next(node for node in model.graph.node if node.op_type == "Relu")
    for node in model.graph.node:
        node.input[:] = ["h" if name == relu.output[0] else name for name in node.input]
    relu.output[0] = "h"
    model.graph.output[0].name = "h"
    model.graph.output[0].type.tensor_type.ClearField("shape")
    keep = list(model.graph.node)[: list(model.graph.node).index(relu) + 1]
    del model.graph.node[:]
    model.graph.node.extend(keep)
    return model


def test_measured_density_becomes_part_of_the_workload(model: Path) -> None:
    prepared = prepare(model, TARGET)
    names = list(prepared.tasks)
    tasks = make_tasks(prepared.graph, TARGET, {names[1]: 0.12})
    assert tasks[names[0]].workload.activation_density is msgspec.UNSET
    assert tasks[names[1]].workload.activation_density == 1 / 8


def test_calibrated_network_is_right_for_no_few_and_all_activations(model: Path, tmp_path: Path) -> None:
    library = tmp_path / "m.so"
    report = sparsetvm.compile(model, library, threads=1, log_dir=tmp_path, reuse=False, calibrate={"x": samples(2)})
    assert "x86.spmv_columns" in report.layers[1]["config"]
    with sparsetvm.load(library) as module:
        for scale in (0.0, 0.1, 1.0, 100.0, -100.0):
            x = np.float32(scale) * samples(1)[0]
            expected = run_onnxruntime(network().model(), {"x": x})["y"]
            assert relative_error(module.run({"x": x})["y"], expected) <= 1e-5


def convolutions(*, stride: int = 1) -> ModelBuilder:
    """A ReLU that leaves about one value in seven, and a convolution whose filters are pruned in blocks of 16."""
    b = ModelBuilder("sparse_images", seed=1)
    rng = np.random.default_rng(0)
    first = b.conv(b.input("x", (1, 8, 12, 12)), 8, 24, 3, sparsity=0.8)
    hidden = b.op("Relu", b.op("Add", first, b.const(np.float32(-2.5))))
    keep = np.repeat(rng.random((3, 24, 5, 5)) < 0.1, 16, axis=0)
    weight = b.const((rng.standard_normal(keep.shape) * keep).astype(np.float32))
    y = b.op("Conv", hidden, weight, kernel_shape=[5, 5], strides=[stride, stride], pads=[2, 2, 2, 2])
    b.op("Identity", b.op("Relu", y), out="y")
    return b.output("y")


def test_calibrated_convolutions_skip_zeros_and_are_right_for_any_input(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((1, 8, 12, 12)).astype(np.float32)
    for stride, chosen in ((1, True), (2, False)):
        builder, library = convolutions(stride=stride), tmp_path / f"m{stride}.so"
        model = builder.save(tmp_path / f"m{stride}.onnx")
        report = sparsetvm.compile(model, library, threads=1, log_dir=tmp_path, reuse=False, calibrate={"x": x})
        assert ("x86.conv_columns" in report.layers[1]["config"]) == chosen
        with sparsetvm.load(library) as module:
            for scale in (0.0, 0.1, 1.0, 100.0, -100.0):
                expected = run_onnxruntime(builder.model(), {"x": np.float32(scale) * x})["y"]
                assert relative_error(module.run({"x": np.float32(scale) * x})["y"], expected) <= 1e-5


@pytest.mark.parametrize("given", ["rows", "samples", "random"])
def test_all_buckets_of_a_batch_get_the_densities(given: str, tmp_path: Path) -> None:
    model, library = network("N").save(tmp_path / "model.onnx"), tmp_path / "m.so"
    inputs = {"rows": {"x": samples(19)[:, 0]}, "samples": {"x": samples(2)}, "random": "random"}[given]
    report = sparsetvm.compile(
        model, library, threads=1, log_dir=tmp_path, reuse=False, calibrate=inputs, buckets=(1, 3, 16)
    )
    assert sum("x86.spmv_columns" in layer["config"] for layer in report.layers) == 2
    with sparsetvm.load(library) as module:
        for size in (1, 3, 18):
            x = samples(size)[:, 0]
            expected = run_onnxruntime(model, {"x": x})["y"]
            assert relative_error(module.run({"x": x})["y"], expected) <= 1e-5


def test_lengths_that_are_filled_up_cannot_be_calibrated(tmp_path: Path) -> None:
    model = bert(batch=1, seq="S").save(tmp_path / "m.onnx")
    with pytest.raises(UsageError, match="cannot run by themselves"):
        sparsetvm.compile(model, tmp_path / "m.so", calibrate="random", buckets={"S": (1, 8)}, log_dir=tmp_path)


def test_random_inputs_serve_too(model: Path) -> None:
    first, second = measure_densities(model, TARGET, None, None).values()
    assert first == 1.0
    assert 0.0 < second < 0.5


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({"z": np.zeros((1, 64))}, "no input 'z'"),
        ({}, "no array for the input 'x'"),
        ({"x": np.zeros((1, 63))}, "not \\(1, 64\\) or samples of it"),
        ({"x": np.zeros((0, 1, 64))}, "samples"),
    ],
)
def test_samples_that_do_not_fit_are_refused(inputs: dict[str, np.ndarray], says: str, model: Path) -> None:
    with pytest.raises(UsageError, match=says):
        measure_densities(model, TARGET, None, inputs)


def test_model_for_another_machine_cannot_be_calibrated(model: Path) -> None:
    with pytest.raises(UsageError, match="cannot run here"):
        measure_densities(model, parse_target("cuda,sm_90", 1), None, None)
