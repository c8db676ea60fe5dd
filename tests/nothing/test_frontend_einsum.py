"""Einsum of two tensors becomes a matrix product."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from graph_eval import evaluate
from models import ModelBuilder, random_inputs, relative_error, run_onnxruntime

from sparsetvm.core.graph import Graph
from sparsetvm.frontend.load import load_model
from sparsetvm.rewrite.canonical import canonicalize
from sparsetvm.rewrite.make_layers import make_layers

SIZES = {"b": 2, "h": 3, "i": 5, "j": 4, "k": 6, "l": 1}


def loaded(equation: str, folder: Path, constant: bool = False) -> Graph:
    b = ModelBuilder(opset=13)
    left, right = equation.replace(" ", "").partition("->")[0].split(",")
    shapes = [tuple(SIZES[label] for label in text) for text in (left, right)]
    x = b.input("x", shapes[0])
    y = (
        b.const(np.random.default_rng(0).standard_normal(shapes[1]).astype(np.float32))
        if constant
        else b.input("z", shapes[1])
    )
    b.output(b.op("Einsum", x, y, equation=equation))
    graph = load_model(b.save(folder / "m.onnx")).graph
    inputs = random_inputs(b.model())
    for name, expected in run_onnxruntime(b.model(), inputs).items():
        assert relative_error(evaluate(graph, inputs)[name], expected) < 1e-5
    return graph


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize(
    "equation",
    [
        "bij,bjk->bik", "bhik,bhjk->bhij", "ij,jk", "bij , jkl -> bkil", "bi,bi->b", "i,j->ij",
        "bihk,bjhk->bhij", "ij,bkj->kbi", "bij,bij->bij", "ji,ij->ij",
    ],
)  # fmt: skip
def test_products_become_matmul(equation: str, constant: bool, tmp_path: Path) -> None:
    graph = loaded(equation, tmp_path, constant)
    assert "Einsum" not in {node.op for node in graph.nodes}
    assert sum(node.op == "MatMul" for node in graph.nodes) == 1


@pytest.mark.parametrize("equation", ["bij,bjk->bk", "bij,bjk->"])
def test_sums_of_one_operand_stay(equation: str, tmp_path: Path) -> None:
    assert [node.op for node in loaded(equation, tmp_path).nodes] == ["Einsum"]


def test_weights_in_an_einsum_are_a_layer(tmp_path: Path) -> None:
    graph = loaded("bij,jk->bik", tmp_path, constant=True)
    canonicalize(graph)
    make_layers(graph)
    assert [node.op for node in graph.nodes] == ["matmul"]
