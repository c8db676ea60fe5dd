"""Back to ONNX: single nodes and whole graphs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graph_eval import evaluate
from models import bert, conv_net, mlp, mobile_net, random_inputs, relative_error, run_onnxruntime

from sparsetvm.core.graph import Graph, Node
from sparsetvm.frontend.load import load_model
from sparsetvm.frontend.to_onnx import graph_to_onnx, single_node_model
from sparsetvm.rewrite.canonical import canonicalize

MODELS = [mlp, conv_net, mobile_net, bert]


@pytest.mark.parametrize("opset", [9, 13, 18])
@pytest.mark.parametrize("build", MODELS)
def test_graph_to_onnx_computes_the_same(build, opset, tmp_path):
    model = build(opset=opset).model()
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    again = graph_to_onnx(load_model(path).graph)
    onnx.checker.check_model(again, full_check=True)
    inputs = random_inputs(model)
    expected, found = run_onnxruntime(model, inputs), run_onnxruntime(again, inputs)
    for name, array in expected.items():
        assert relative_error(found[name], array) < 1e-6


@pytest.mark.parametrize("build", MODELS)
def test_single_node_models_are_valid_and_compute_each_value(build, tmp_path):
    model = build().model()
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    graph = load_model(path).graph
    values = evaluate(graph, random_inputs(model), keep=True)
    for node in graph.nodes:
        single = single_node_model(node, graph)
        onnx.checker.check_model(single, full_check=True)
        inputs = {info.name: values[info.name].astype(np.float32) for info in single.graph.input}
        for name, array in run_onnxruntime(single, inputs).items():
            assert relative_error(array, values[name]) < 1e-5, node.name


def test_single_node_model_takes_the_first_opset_of_a_newer_operator(tmp_path):
    graph = load_model(bert().save(tmp_path / "m.onnx")).graph
    canonicalize(graph)
    opsets = {node.op: single_node_model(node, graph).opset_import[0].version for node in graph.nodes}
    assert opsets["LayerNormalization"] == 17
    assert opsets["Gelu"] == 20
    assert opsets["MatMul"] == 13


def test_single_node_model_gives_an_input_that_is_read_twice_once(tmp_path):
    graph = Graph("g", 13, [Node("sq", "Mul", ["x", "x"], ["y"])], {}, ["x"], ["y"])
    for name in ("x", "y"):
        graph.add_value(name, (2, 3), "float32")
    assert [info.name for info in single_node_model(graph.nodes[0], graph).graph.input] == ["x"]


@pytest.mark.parametrize("opset", [9, 13, 21])
def test_graph_to_onnx_writes_clip_and_silu_in_onnx_operators(opset, tmp_path):
    model = mobile_net(opset=opset).model()
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    graph = load_model(path).graph
    canonicalize(graph)
    assert {"Clip", "Silu"} <= {node.op for node in graph.nodes if node.domain}
    again = graph_to_onnx(graph)
    onnx.checker.check_model(again, full_check=True)
    inputs = random_inputs(model)
    assert relative_error(run_onnxruntime(again, inputs)["logits"], run_onnxruntime(model, inputs)["logits"]) < 1e-5


def test_to_onnx_refuses_what_onnx_does_not_know():
    graph = Graph("g", 13, [Node("fc", "matmul", ["x"], ["y"], domain="sparsetvm")], {}, ["x"], ["y"])
    for name in ("x", "y"):
        graph.add_value(name, (2, 3), "float32")
    with pytest.raises(ValueError, match=r"'fc': sparsetvm\.matmul is no ONNX operator"):
        single_node_model(graph.nodes[0], graph)
    with pytest.raises(ValueError, match="no ONNX operator"):
        graph_to_onnx(graph)


def test_graph_to_onnx_refuses_an_operator_that_is_newer_than_the_graph(tmp_path):
    graph = load_model(bert().save(tmp_path / "m.onnx")).graph
    canonicalize(graph)
    with pytest.raises(ValueError, match="LayerNormalization does not exist in opset 13"):
        graph_to_onnx(graph)
