"""Which activations behind a max pool move into the convolution in front of it, on GPUs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from models import ModelBuilder

from sparsetvm.core.graph import SPARSETVM_DOMAIN, Graph
from sparsetvm.core.target import parse_target
from sparsetvm.frontend.load import load_model
from sparsetvm.rewrite.pipeline import rewrite

POOL = {"kernel_shape": [2, 2], "strides": [2, 2]}


def rewritten(tmp_path: Path, ops: list[str], target: str = "cuda,sm_90", **pool: object) -> Graph:
    """A convolution, these operators, and a second reader of the pool where they end with "twice"."""
    b = ModelBuilder("pooled", seed=0)
    y = b.conv(b.input("x", (1, 4, 12, 12)), 4, 16, 3)
    for op in ops:
        if op == "MaxPool":
            y = b.op(op, y, **{**POOL, **pool})
        elif op == "Clip":
            y = b.op(op, y, b.const(np.float32(-1)), b.const(np.float32(2)))
        elif op == "twice":
            y = b.op("Mul", y, b.nodes[-1].input[0])
        else:
            y = b.op(op, y)
    b.op("Identity", y, out="y")
    return rewrite(load_model(b.output("y").save(tmp_path / "m.onnx")).graph, parse_target(target))


def activation(graph: Graph) -> str:
    (layer,) = [node for node in graph.nodes if node.is_op("conv2d", domain=SPARSETVM_DOMAIN)]
    return str(layer.attrs["epilogue"].activation)


@pytest.mark.parametrize(("op", "expected"), [("Relu", "relu"), ("Clip", "clip"), ("Sigmoid", "sigmoid")])
def test_activation_moves_into_the_convolution(op: str, expected: str, tmp_path: Path) -> None:
    graph = rewritten(tmp_path, ["MaxPool", op])
    assert activation(graph) == expected
    assert [node.op for node in graph.nodes if node.op in ("MaxPool", op)] == ["MaxPool"]


@pytest.mark.parametrize(
    "ops", [["MaxPool", "Abs"], ["Sigmoid", "MaxPool", "Relu"], ["MaxPool", "Relu", "twice"], ["AveragePool", "Relu"]]
)
def test_others_stay_behind_the_pool(ops: list[str], tmp_path: Path) -> None:
    if ops[0] == "AveragePool":
        b = ModelBuilder("average", seed=0)
        y = b.op("AveragePool", b.conv(b.input("x", (1, 4, 12, 12)), 4, 16, 3), **POOL)
        b.op("Relu", y, out="y")
        graph = rewrite(load_model(b.output("y").save(tmp_path / "m.onnx")).graph, parse_target("cuda,sm_90"))
    else:
        graph = rewritten(tmp_path, ops)
    assert activation(graph) == ("sigmoid" if ops[0] == "Sigmoid" else "none")


def test_pools_that_have_no_kernel_of_ours_keep_it(tmp_path: Path) -> None:
    assert activation(rewritten(tmp_path, ["MaxPool", "Relu"], dilations=[2, 2])) == "none"


def test_cpus_have_their_own_way(tmp_path: Path) -> None:
    graph = rewritten(tmp_path, ["MaxPool", "Relu"], "cpu,x86-64-v3")
    assert activation(graph) == "none"
