"""Whole networks for a GPU, run by the emulator: layouts, conversions, kernels and their arguments fit together."""

from __future__ import annotations

import numpy as np
import pytest
from emulator.network import run_network
from k_winners_cases import inputs, network
from models import (
    ModelBuilder,
    bert,
    conv_net,
    decoder,
    mlp,
    mobile_net,
    random_inputs,
    relative_error,
    run_onnxruntime,
)
from sparsetvm.schedules.base import arithmetic_of

from sparsetvm.core.arithmetic import network_tolerance
from sparsetvm.core.config import Config
from sparsetvm.core.target import Target, parse_target
from sparsetvm.core.workload import Workload
from sparsetvm.rewrite.prepare import prepare
from sparsetvm.search.candidates import candidates_of

H200 = parse_target("cuda,sm_90")
TF32 = parse_target("cuda,sm_90", allow_tf32=True)


def normalised_before() -> ModelBuilder:
    """A residual block whose norm comes before its convolution, on a value that others read: no layer takes it."""
    b = ModelBuilder()
    x = b.conv(b.input("x", (1, 3, 9, 9)), 3, 8)
    y = b.conv(b.relu(b.batch_norm(x, 8)), 8, 8, sparsity=0.8)
    b.op("Add", x, y, out="y")
    return b.output("y")


NETWORKS = {
    "mlp of one sample": (lambda: mlp(batch=1), False),
    "mlp of nine samples": (lambda: mlp(batch=9), False),
    "residual network": (lambda: conv_net(batch=2, size=9), False),
    "dense residual network": (conv_net, True),
    "network with norms before convolutions": (normalised_before, False),
    "depthwise network": (lambda: mobile_net(batch=2, size=11), False),
    "encoder": (lambda: bert(batch=2, seq=12), False),
    "decoder": (lambda: decoder(batch=2), False),
    "decoder whose attention is fused": (lambda: decoder(seq=8), False),
    "dense encoder": (lambda: bert(seq=5, layers=2, tanh=True), True),
}


def config_of(workload: Workload, dense: bool, target: Target = H200) -> Config:
    """The default of the first template that is dense, or that is not; where there is none, of any."""
    choices = candidates_of(workload, target).choices
    return next((choice for choice in choices if choice.dense is dense), choices[0]).default


@pytest.mark.parametrize("name", NETWORKS)
def test_network_of_launches_computes_what_onnxruntime_computes(name, tmp_path):
    build, dense = NETWORKS[name]
    builder = build()
    prepared = prepare(builder.save(tmp_path / "m.onnx"), H200)
    configs = {layer: config_of(task.workload, dense) for layer, task in prepared.tasks.items()}
    inputs = random_inputs(builder.model())
    found, launches = run_network(prepared.graph, prepared.tasks, configs, H200, inputs)
    expected = run_onnxruntime(builder.model(), inputs)
    assert launches >= len(prepared.tasks)
    for value, wanted in zip(found, expected.values(), strict=True):
        assert value.shape == wanted.shape
        assert relative_error(value, wanted) < 1e-5


@pytest.mark.parametrize("build", [lambda: conv_net(size=9), lambda: bert(seq=12)], ids=["residual network", "encoder"])
def test_network_in_tf32_is_off_by_no_more_than_its_manifest_says(build, tmp_path):
    builder = build()
    prepared = prepare(builder.save(tmp_path / "m.onnx"), TF32)
    configs = {layer: config_of(task.workload, True, TF32) for layer, task in prepared.tasks.items()}
    inputs = random_inputs(builder.model())
    found, _ = run_network(prepared.graph, prepared.tasks, configs, TF32, inputs)
    used = [arithmetic_of(config.template) for config in configs.values()]
    assert "tf32" in used
    for value, wanted in zip(found, run_onnxruntime(builder.model(), inputs).values(), strict=True):
        assert 1e-5 < relative_error(value, wanted) < network_tolerance(used)


def test_network_with_k_winners_skips_zeros_and_computes_what_onnxruntime_computes(tmp_path):
    builder = network()
    prepared = prepare(builder.save(tmp_path / "m.onnx"), H200)
    assert not [node for node in prepared.graph.nodes if node.op in ("TopK", "ScatterElements")]
    choices = {name: candidates_of(task.workload, H200) for name, task in prepared.tasks.items()}
    skipping = {name: found.choice("cuda.spmv_columns") for name, found in choices.items()}
    configs = {name: (skipping[name] or found.choices[0]).default for name, found in choices.items()}
    assert sum(choice is not None for choice in skipping.values()) == 2
    for x in inputs().values():
        found, _ = run_network(prepared.graph, prepared.tasks, configs, H200, {"x": x})
        (wanted,) = run_onnxruntime(builder.model(), {"x": x}).values()
        np.testing.assert_allclose(found[0], wanted, rtol=1e-5, atol=1e-6 * np.abs(wanted).max())
