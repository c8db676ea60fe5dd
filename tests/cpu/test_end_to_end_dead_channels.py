"""A network with dead filters compiles to a smaller one that computes what ONNX Runtime computes of the whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from dead_filters import dead_conv_net, dead_depthwise_net, dead_mlp, dead_residual_net
from end_to_end import assert_same_outputs, compile_default, run_library
from models import ModelBuilder, random_inputs, run_onnxruntime

import sparsetvm
from sparsetvm.core.manifest import manifest_path
from sparsetvm.core.target import cpu_flags

pytestmark = pytest.mark.skipif("avx2" not in cpu_flags(), reason="needs AVX2")


@pytest.mark.parametrize(
    ("builder", "workloads"),
    [
        (dead_conv_net(), ["conv2d 3x3 14->14 5x5", "conv2d 1x1 14->14 5x5"]),
        (dead_residual_net(), ["conv2d 3x3 3->14 8x8", "conv2d 3x3 14->14 8x8"]),
        (dead_depthwise_net(), ["conv2d 3x3/2 3->14 4x4", "conv2d 1x1 14->14 4x4"]),
        (dead_mlp(activation="gelu"), ["matmul 14x12 n=3", "matmul 14x14 n=3", "matmul 5x14 n=3"]),
    ],
    ids=lambda value: value.name if isinstance(value, ModelBuilder) else "",
)
def test_library_has_the_smaller_layers(builder: ModelBuilder, workloads: list[str], tmp_path: Path) -> None:
    inputs = random_inputs(builder.model())
    library = compile_default(builder, tmp_path)
    assert_same_outputs(run_library(library, inputs), run_onnxruntime(builder.model(), inputs))
    manifest = json.loads(manifest_path(library).read_text())
    assert set(workloads) <= {layer["workload"] for layer in manifest["layers"]}


def test_inspect_says_what_was_removed_and_keeps_the_layers_names(tmp_path: Path) -> None:
    model = dead_conv_net().save(tmp_path / "m.onnx")
    report = sparsetvm.inspect(model)
    assert "removed 18 dead channels of 3 layers" in report.notes
    whole = {node.name for node in dead_conv_net().model().graph.node}
    assert {layer.name for layer in report.layers} <= whole
