"""Constant folding, dropped no-ops, inlined branches and functions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from graph_eval import evaluate
from models import ModelBuilder, random_inputs, relative_error, run_onnxruntime
from onnx import TensorProto, helper, parser

from sparsetvm.core.graph import Graph
from sparsetvm.errors import ModelError
from sparsetvm.frontend.load import load_model

HEADER = '<ir_version: 9, opset_import: ["" : 17]>\n'


def load_text(text: str, folder: Path, header: str = HEADER) -> Graph:
    path = folder / "text.onnx"
    onnx.save(parser.parse_model(header + text), path)
    return load_model(path).graph


def loaded_like_onnxruntime(builder: ModelBuilder, folder: Path) -> Graph:
    graph = load_model(builder.save(folder / "m.onnx")).graph
    inputs = random_inputs(builder.model())
    for name, expected in run_onnxruntime(builder.model(), inputs).items():
        assert relative_error(evaluate(graph, inputs)[name], expected) < 1e-5
    return graph


@pytest.mark.parametrize("chain", ["Transpose", "Identity", "Reshape", "Cast", "Unsqueeze", "Constant", "Mul"])
def test_fold_reaches_weights_behind(chain, tmp_path):
    b = ModelBuilder()
    x = b.input("x", (2, 6))
    weight = b.weight((4, 6), 6)
    if chain == "Transpose":
        w = b.op("Transpose", b.const(weight), perm=[1, 0])
    elif chain == "Identity":
        w = b.op("Identity", b.op("Identity", b.const(weight.T)))
    elif chain == "Reshape":
        w = b.op("Reshape", b.const(weight.T.reshape(2, 12)), b.const([6, -1]))
    elif chain == "Cast":
        w = b.op("Cast", b.const(weight.T.astype(np.float16)), to=TensorProto.FLOAT)
    elif chain == "Unsqueeze":
        w = b.op("Squeeze", b.op("Unsqueeze", b.const(weight.T), b.const([0])), b.const([0]))
    elif chain == "Constant":
        w = b.op("Constant", value=onnx.numpy_helper.from_array(np.ascontiguousarray(weight.T)))
    else:
        w = b.op("Mul", b.const(weight.T), b.const(2.0))
    graph = loaded_like_onnxruntime(b.output(b.op("MatMul", x, w)), tmp_path)
    assert [node.op for node in graph.nodes] == ["MatMul"]
    assert graph.values[graph.nodes[0].inputs[1]].is_constant


def test_fold_removes_the_shape_chains_of_exporters(tmp_path):
    b = ModelBuilder()
    x = b.op("Relu", b.input("x", ("N", 3, 4)))
    batch = b.op("Gather", b.op("Shape", x), b.const(np.array(0)), axis=0)
    target = b.op("Concat", b.op("Unsqueeze", batch, b.const([0])), b.const([-1]), axis=0)
    y = b.op("Reshape", x, target)
    y = b.op(
        "Expand", y, b.op("ConstantOfShape", b.const([2]), value=helper.make_tensor("v", TensorProto.INT64, [1], [1]))
    )
    graph = loaded_like_onnxruntime(b.output(y), tmp_path)
    assert [node.op for node in graph.nodes] == ["Relu", "Reshape"]
    assert list(graph.constant(graph.nodes[1].inputs[1])) == [1, -1]


def test_fold_uses_start_and_end_of_shape(tmp_path):
    graph = load_text("g (float[2,3,4,5] x) => (y, n) { y = Shape<start=1, end=-1>(x)\n n = Size(x) }", tmp_path)
    assert list(graph.constant("y")) == [3, 4]
    assert graph.constant("n") == 120


def test_load_drops_nodes_that_do_nothing(tmp_path):
    text = """g (float[2,4] x) => (y) {
        a = Identity(x)
        b, mask = Dropout(a)
        c = Cast<to=1>(b)
        s = Constant<value_ints=[2,-1]>()
        d = Reshape(c, s)
        e = Transpose<perm=[0,1]>(d)
        p = Constant<value_ints=[0,0,0,0]>()
        f = Pad(e, p)
        h = Concat<axis=0>(f)
        y = Relu(h)
    }"""
    graph = load_text(text, tmp_path)
    assert [(node.op, node.inputs) for node in graph.nodes] == [("Relu", ["x"])]


@pytest.mark.parametrize("op", ["RandomNormalLike", "RandomUniformLike"])
def test_fold_leaves_random_numbers_alone(op, tmp_path):
    with pytest.raises(ModelError, match=op):
        load_text(
            f"g (float[2] x) => (y) {{ c = Constant<value_floats=[0.5, 0.5]>()\n r = {op}(c)\n y = Add(x, r) }}",
            tmp_path,
        )


def test_fold_leaves_results_that_are_too_large(tmp_path):
    text = "g (float[1] x) => (y) { s = Constant<value_ints=[8192, 8192]>()\n z = ConstantOfShape(s)\n y = Mul(x, z) }"
    graph = load_text(text, tmp_path)
    assert [node.op for node in graph.nodes] == ["ConstantOfShape", "Mul"]
    assert graph.values["y"].shape == (8192, 8192)


def test_fold_names_the_layer_when_it_cannot_compute(tmp_path):
    text = (
        "g (float[1] x) => (y) { i = Constant<value_ints=[7]>()\n s = Shape(x)\n k = Gather(s, i)\n y = Expand(x, k) }"
    )
    with pytest.raises(ModelError, match="layer 'Gather_2'"):
        load_text(text, tmp_path)


@pytest.mark.parametrize(("condition", "op"), [(1, "Relu"), (0, "Neg")])
def test_load_inlines_the_branch_of_a_constant_condition(condition, op, tmp_path):
    text = f"""g (float[N,3] x) => (float[N,3] y) {{
        c = Constant<value = bool {{{condition}}}>()
        a = Exp(x)
        i = If (c) <
            then_branch = t () => (float[N,3] z) {{ one = Constant<value_float=1.0>()
                r = Relu(a)
                z = Add(r, one) }},
            else_branch = e () => (float[N,3] z) {{ z = Neg(a) }}>
        y = Identity(i)
    }}"""
    graph = load_text(text, tmp_path)
    assert [node.op for node in graph.nodes][:2] == ["Exp", op]
    assert graph.outputs == ["y"]
    assert "y" in graph.nodes[-1].outputs


def test_load_rejects_a_computed_condition(tmp_path):
    text = """g (float[2] x, bool c) => (float[2] y) {
        y = If (c) <
            then_branch = t () => (float[2] z) { z = Relu(x) },
            else_branch = e () => (float[2] z) { z = Neg(x) }>
    }"""
    with pytest.raises(ModelError, match=r"If \(layers: If_0\)(.|\n)*control flow"):
        load_text(text, tmp_path)


def test_load_inlines_local_functions(tmp_path):
    text = """g (float[N,3] x) => (float[N,3] y) { y = local.outer(x) }
    <domain: "local", opset_import: ["": 17]> outer (a) => (b) { c = Relu(a)
        b = local.inner(c) }
    <domain: "local", opset_import: ["": 17]> inner (a) => (b) { b = Neg(a) }"""
    graph = load_text(text, tmp_path, '<ir_version: 9, opset_import: ["" : 17, "local": 1]>\n')
    assert [node.op for node in graph.nodes] == ["Relu", "Neg"]


def test_load_rejects_a_function_that_calls_itself(tmp_path):
    text = """g (float[N,3] x) => (float[N,3] y) { y = local.f(x) }
    <domain: "local", opset_import: ["": 17]> f (a) => (b) { b = local.f(a) }"""
    with pytest.raises(ModelError):
        load_text(text, tmp_path, '<ir_version: 9, opset_import: ["" : 17, "local": 1]>\n')


def test_load_expands_standard_operators_that_are_functions(tmp_path):
    b = ModelBuilder()
    graph = loaded_like_onnxruntime(b.output(b.op("Celu", b.input("x", (2, 3)), alpha=2.0)), tmp_path)
    assert "Celu" not in {node.op for node in graph.nodes}


@pytest.mark.parametrize(
    ("data_shape", "axis", "indices"),
    [
        ((1, 40), 1, np.arange(33)[None] - 3),
        ((40, 3), 0, np.array([[39, 0]])),
        ((2, 5, 3), -2, np.arange(8).reshape(2, 4, 1) % 5),
    ],
)
def test_fold_gathers_elements_like_onnxruntime(data_shape, axis, indices, tmp_path):
    b = ModelBuilder()
    data = np.arange(np.prod(data_shape), dtype=np.float32).reshape(data_shape)
    picked = b.op("GatherElements", b.const(data), b.const(indices.astype(np.int64)), axis=axis)
    graph = loaded_like_onnxruntime(b.output(b.op("Add", b.input("x", indices.shape), picked)), tmp_path)
    assert [node.op for node in graph.nodes] == ["Add"]


@pytest.mark.parametrize("indices", [[[40]], [[-41]], [[0], [0]], [[0.0]], 0], ids=str)
def test_fold_refuses_to_gather_elements_beyond_the_data(indices, tmp_path):
    b = ModelBuilder()
    picked = b.op("GatherElements", b.const(np.zeros((1, 40), np.float32)), b.const(np.array(indices)), axis=1)
    path = b.output(b.op("Add", b.input("x", (1, 1)), picked)).save(tmp_path / "m.onnx")
    with pytest.raises(ModelError):
        load_model(path)
