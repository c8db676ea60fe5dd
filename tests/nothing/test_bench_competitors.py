"""Competitors compute what our layers compute, and say so when they are missing."""

from __future__ import annotations

import sys

import bench_models
import numpy as np
import pytest
from benchlib import competitors
from benchlib.case import matmul_task
from benchlib.competitors import competitors_of, parse_names
from benchlib.model_row import Failed, time_deepsparse

from sparsetvm.core.pattern import PatternSummary
from sparsetvm.core.target import Target
from sparsetvm.core.task import Task
from sparsetvm.core.workload import ConvGeometry, Epilogue, Workload
from sparsetvm.errors import EnvironmentProblem, UsageError
from sparsetvm.measure.reference import input_shape, make_reference, output_shape, to_logical, to_physical
from sparsetvm.rewrite.plane_geometry import conv_layouts, required_pad
from sparsetvm.runtime.openvino import openvino_request

TARGET = Target("cpu", "skylake-avx512", "avx512")


def conv_task(epilogue: Epilogue) -> Task:
    rng = np.random.default_rng(0)
    conv = ConvGeometry(5, 9, 8, (3, 3), (2, 2), (1, 1, 1, 1))
    weight = rng.standard_normal((6, 45)).astype(np.float32)
    bias = rng.standard_normal(6).astype(np.float32)
    lin, lout = conv_layouts(conv, 1, 6, required_pad(conv), 16)
    summary = PatternSummary("dense", (1, 1), 1.0, 1.0, 0, "0")
    workload = Workload("conv2d", 6, 45, conv.out_height * conv.out_width, lin, lout, epilogue, summary, conv)
    return Task("conv", workload, weight, bias if epilogue.bias else None)


def product(n: int) -> Task:
    return matmul_task("p", n, lambda: np.random.default_rng(1).standard_normal((6, 20)).astype(np.float32), TARGET)


LAYERS = {
    "product": lambda: product(7),
    "one token": lambda: product(1),
    "convolution": lambda: conv_task(Epilogue(bias=True, activation="relu")),
    "with residual": lambda: conv_task(Epilogue(bias=True, residual=True, activation="relu")),
    "with clip": lambda: conv_task(Epilogue(activation="clip", low=-0.5, high=1.5)),
}


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_every_competitor_computes_the_layer(tmp_path, make):
    task = make()
    workload = task.workload
    x = np.random.default_rng(2).standard_normal(input_shape(workload)).astype(np.float32)
    reference = make_reference(workload, task.weight, task.bias, 0, x)
    inputs = {"x": x}
    if reference.residual is not None:
        inputs["residual"] = to_logical(workload.residual_layout, reference.residual, output_shape(workload))
    made = competitors_of(task, inputs, parse_names(None), 1, tmp_path)
    assert {"numpy", "scipy"} <= {other.name for other in made} or workload.conv is not None
    assert "onnxruntime" in [other.name for other in made]
    for other in made:
        assert reference.error(to_physical(workload.layout_out, other.output())) < 1e-5, other.name


def test_layer_with_another_activation_has_no_model(tmp_path):
    with pytest.raises(ValueError, match="gelu"):
        competitors_of(conv_task(Epilogue(activation="gelu")), {}, ["onnxruntime"], 1, tmp_path)


def test_names_of_kernel_competitors_are_checked(monkeypatch):
    assert parse_names("ort,numpy") == ["onnxruntime", "numpy"]
    assert parse_names("none") == []
    with pytest.raises(UsageError, match="did you mean 'ort'"):
        parse_names("orp")
    monkeypatch.setattr(competitors, "version_of", lambda name: "missing" if name == "openvino" else "1.0")
    assert parse_names(None) == ["numpy", "onnxruntime", "scipy"]
    with pytest.raises(EnvironmentProblem, match="pip install openvino"):
        parse_names("openvino")


def test_openvino_has_two_columns_for_models(monkeypatch):
    monkeypatch.setattr(bench_models, "version_of", lambda name: "1.0")
    assert bench_models.competitors("ort,openvino") == ["ort", "openvino-f32", "openvino"]
    with pytest.raises(UsageError, match="deepsparse-python"):
        bench_models.competitors("deepsparse")
    monkeypatch.setattr(bench_models, "version_of", lambda name: "missing")
    with pytest.raises(EnvironmentProblem, match="onnxruntime is not installed"):
        bench_models.competitors("ort")


def test_openvino_that_is_missing_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(EnvironmentProblem, match="pip install openvino"):
        openvino_request(tmp_path / "m.onnx", 1, float32=True)


def interpreter(folder, script):
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_deepsparse_result_is_the_last_line(tmp_path):
    python = interpreter(tmp_path, 'echo banner; echo "{\\"median\\": 1.5, \\"arguments\\": $#}"')
    assert time_deepsparse(python, tmp_path / "m.onnx", tmp_path / "i.npz", 2) == {"median": 1.5, "arguments": 5}


@pytest.mark.parametrize("script", ["echo no such module >&2; exit 1", "echo no json", "true"])
def test_deepsparse_that_does_not_run_is_told(tmp_path, script):
    with pytest.raises(Failed, match="DeepSparse did not run"):
        time_deepsparse(interpreter(tmp_path, script), tmp_path / "m.onnx", tmp_path / "i.npz", 1)
    with pytest.raises(Failed, match="DeepSparse did not run"):
        time_deepsparse(tmp_path / "nothing", tmp_path / "m.onnx", tmp_path / "i.npz", 1)
