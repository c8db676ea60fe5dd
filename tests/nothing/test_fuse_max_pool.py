"""Which convolutions take the max pooling behind them, and on which side an activation may stand."""

from __future__ import annotations

import numpy as np
import pytest
from models import ModelBuilder

from sparsetvm.core.graph import SPARSETVM_DOMAIN, Graph
from sparsetvm.core.layout import Planes
from sparsetvm.core.target import parse_target
from sparsetvm.frontend.load import load_model
from sparsetvm.rewrite.pipeline import rewrite

POOL = {"kernel_shape": [2, 2], "strides": [2, 2]}


def rewritten(
    tmp_path, ops: list[str], *, channels: int = 1, sparsity: float = 0.0, target: str = "cpu,znver4", **pool
):
    b = ModelBuilder("pooled", seed=0)
    y = b.conv(b.input("x", (1, channels, 12, 12)), channels, 16, 3, sparsity=sparsity)
    for op in ops:
        y = b.op("MaxPool", y, **{**POOL, **pool}) if op == "MaxPool" else b.op(op, y)
    b.op("Identity", y, out="y")
    graph = load_model(b.output("y").save(tmp_path / "m.onnx")).graph
    return rewrite(graph, parse_target(target))


def fused(graph: Graph) -> list[str]:
    return [
        node.attrs["epilogue"].activation
        for node in graph.nodes
        if node.is_op("pooled_conv2d", domain=SPARSETVM_DOMAIN)
    ]


@pytest.mark.parametrize(
    ("ops", "activation"), [(["MaxPool"], "none"), (["MaxPool", "Relu"], "relu"), (["Relu", "MaxPool"], "relu")]
)
def test_pool_and_activation_move_into_the_convolution(ops: list[str], activation: str, tmp_path) -> None:
    graph = rewritten(tmp_path, ops)
    assert fused(graph) == [activation]
    assert not [node for node in graph.nodes if node.is_op("MaxPool", "Relu")]
    (node,) = [node for node in graph.nodes if node.op == "pooled_conv2d"]
    assert isinstance(graph.values[node.outputs[0]].layout, Planes)


@pytest.mark.parametrize(
    "change",
    [
        {"sparsity": 0.9}, {"channels": 8}, {"target": "cpu,x86-64-v3"}, {"strides": [1, 1]}, {"pads": [1, 1, 1, 1]},
        {"kernel_shape": [3, 3]},
    ],
    ids=str,
)  # fmt: skip
def test_others_stay_two_nodes(change: dict, tmp_path) -> None:
    assert not fused(rewritten(tmp_path, ["MaxPool"], **change))


def test_weights_that_are_huge_or_not_finite_stay_with_kernels_that_see_each_product(tmp_path, monkeypatch) -> None:
    for value in (np.inf, np.nan, 1e12):
        b = ModelBuilder("pooled", seed=0)
        weight = np.ones((16, 1, 3, 3), np.float32)
        weight[3, 0, 1, 1] = value
        y = b.op("Conv", b.input("x", (1, 1, 12, 12)), b.const(weight), kernel_shape=[3, 3])
        b.op("Identity", b.op("MaxPool", y, **POOL), out="y")
        graph = load_model(b.output("y").save(tmp_path / "m.onnx")).graph
        assert not fused(rewrite(graph, parse_target("cpu,znver4")))
