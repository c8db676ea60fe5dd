"""Loading whole models: shapes, opsets, initializers, names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from graph_eval import evaluate
from models import ModelBuilder, bert, conv_net, mlp, mobile_net, random_inputs, relative_error, run_onnxruntime
from onnx import TensorProto, helper, numpy_helper, parser

from sparsetvm.core.graph import Graph
from sparsetvm.errors import ModelError, UsageError
from sparsetvm.frontend.load import LoadedModel, load_model

HEADER = '<ir_version: 9, opset_import: ["" : 17]>\n'


def load_text(text: str, folder: Path, shapes: dict[str, tuple[int, ...]] | None = None) -> LoadedModel:
    path = folder / "text.onnx"
    onnx.save(parser.parse_model(text if text.startswith("<") else HEADER + text), path)
    return load_model(path, shapes)


def assert_same_outputs(model: onnx.ModelProto, graph: Graph, batch: int = 1) -> None:
    inputs = random_inputs(model, batch=batch)
    expected = run_onnxruntime(model, inputs)
    found = evaluate(graph, inputs)
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].shape == array.shape
        assert relative_error(found[name], array) < 1e-5


@pytest.mark.parametrize("opset", [9, 11, 13, 17, 18, 21])
@pytest.mark.parametrize("build", [mlp, conv_net, mobile_net, bert])
def test_load_gives_the_outputs_of_the_file_when_opset_is(build, opset, tmp_path):
    builder = build(opset=opset)
    loaded = load_model(builder.save(tmp_path / "m.onnx"))
    assert loaded.graph.opset == opset
    assert not loaded.notes
    assert_same_outputs(builder.model(), loaded.graph)


def test_load_gives_every_value_a_static_shape(tmp_path):
    graph = load_model(bert(batch="N").save(tmp_path / "m.onnx")).graph
    assert all(isinstance(dim, int) and dim > 0 for value in graph.values.values() for dim in value.shape)
    assert {value.dtype for value in graph.values.values()} <= {"float32", "int64"}


def test_load_keeps_layer_names_and_makes_missing_and_double_ones_unique(tmp_path):
    builder = ModelBuilder()
    x = builder.input("x", (1, 4))
    x = builder.op("Relu", x, name="act")
    x = builder.op("Neg", x, name="act")
    x = builder.op("Exp", x, name="")
    graph = load_model(builder.output(x).save(tmp_path / "m.onnx")).graph
    assert [node.name for node in graph.nodes] == ["act", "act.1", "Exp_2"]
    assert [node.origin for node in graph.nodes] == [("act",), ("act.1",), ("Exp_2",)]


def test_load_digest_depends_on_the_content_only(tmp_path):
    first, second = mlp().save(tmp_path / "a.onnx"), mlp().save(tmp_path / "b.onnx")
    other = mlp(seed=1).save(tmp_path / "c.onnx")
    assert load_model(first).digest == load_model(second).digest != load_model(other).digest


# ---- shapes ----


def test_load_sets_symbolic_batch_to_one_with_a_note(tmp_path):
    loaded = load_model(conv_net(batch="N").save(tmp_path / "m.onnx"))
    assert loaded.graph.values["x"].shape == (1, 3, 12, 12)
    assert loaded.symbolic == {"x": {"N": 1}}
    assert "set to 1" in loaded.notes[0]


@pytest.mark.parametrize("build", [conv_net, bert])
def test_load_fixes_symbolic_batch_when_shape_is_given(build, tmp_path):
    builder = build(batch="N")
    path = builder.save(tmp_path / "m.onnx")
    name, value = next(iter(load_model(path).graph.values.items()))
    loaded = load_model(path, {name: (3, *value.shape[1:])})
    # "attention_bias" shares the symbol, so it follows.
    assert all(loaded.graph.values[name].shape[0] == 3 for name in loaded.graph.inputs)
    assert not loaded.notes
    assert_same_outputs(builder.model(), loaded.graph, batch=3)


def test_load_names_the_shape_option_when_another_dimension_is_symbolic(tmp_path):
    with pytest.raises(ModelError, match=r"symbolic dimensions: seq(.|\n)*--shape x=1x<size>x4"):
        load_text("g (float[N,seq,4] x) => (y) { y = Relu(x) }", tmp_path)


def test_load_asks_for_shape_when_input_has_none(tmp_path):
    path = tmp_path / "m.onnx"
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)]), path)
    with pytest.raises(ModelError, match="has no shape"):
        load_model(path)
    assert load_model(path, {"x": (2, 5)}).graph.values["y"].shape == (2, 5)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"input": (2, 4)}, "no such input"),
        ({"x": (2, 5)}, "does not fit"),
        ({"x": (2, 4, 1)}, "does not fit"),
        ({"x": (0, 4)}, "must be positive"),
        ({"x": (2, 4), "z": (3, 4)}, "two sizes"),
    ],
)
def test_load_rejects_shapes_that_do_not_fit(shapes, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        load_text("g (float[N,4] x, float[N,4] z) => (y) { y = Add(x, z) }", tmp_path, shapes)


def test_load_says_what_does_not_fit_when_a_reshape_is_for_another_batch(tmp_path):
    text = "g (float[N,4] x) => (y) { s = Constant<value_ints=[2,2]>()\n y = Reshape(x, s) }"
    assert load_text(text, tmp_path).graph.values["y"].shape == (2, 2)
    with pytest.raises(ModelError, match=r"layer 'Reshape_1'.*changes the size"):
        load_text(text, tmp_path, {"x": (2, 4)})


def test_load_rejects_zero_size_dimensions(tmp_path):
    with pytest.raises(ModelError, match="input 'x' has a dimension of size zero"):
        load_text("g (float[0,4] x) => (y) { y = Relu(x) }", tmp_path)
    text = "g (float[2,4] x) => (y) { s = Constant<value_ints=[0]>()\n y = Slice(x, s, s) }"
    with pytest.raises(ModelError, match=r"layer 'Slice_1'.*size zero"):
        load_text(text, tmp_path)


# ---- opsets, outputs ----


@pytest.mark.parametrize(("opset", "message"), [(8, "too old"), (999, "newer than the installed")])
def test_load_rejects_opset(opset, message, tmp_path):
    path = mlp().save(tmp_path / "m.onnx")
    model = onnx.load(path)
    model.opset_import[0].version = opset
    onnx.save(model, path)
    with pytest.raises(ModelError, match=message):
        load_model(path)


def test_load_notes_an_opset_newer_than_tested(tmp_path):
    loaded = load_text('<ir_version: 11, opset_import: ["" : 23]>\ng (float[1,4] x) => (y) { y = Relu(x) }', tmp_path)
    assert "opset 23 is newer" in loaded.notes[0]


def test_load_rejects_model_without_outputs(tmp_path):
    with pytest.raises(ModelError, match="no outputs"):
        load_text("g (float[1,4] x) => () { y = Relu(x) }", tmp_path)


def test_load_rejects_undefined_and_doubly_defined_values(tmp_path):
    with pytest.raises(ModelError, match=r"layer 'Relu_0': no earlier node computes its input 'q'"):
        load_text("g (float[1,4] x) => (y) { y = Relu(q) }", tmp_path)
    with pytest.raises(ModelError, match="already defined"):
        load_text("g (float[1,4] x) => (y) { y = Relu(x)\n y = Neg(x) }", tmp_path)
    with pytest.raises(ModelError, match="no node computes the model's output 'z'"):
        load_text("g (float[1,4] x) => (z) { y = Relu(x) }", tmp_path)


def test_load_keeps_output_names_when_identities_are_dropped(tmp_path):
    text = """g (float[2,4] x) => (y, z, w, k) {
        y = Identity(x)
        r = Relu(x)
        z = Identity(r)
        w = Identity(z)
        k = Constant<value_floats=[2.0]>()
    }"""
    loaded = load_text(text, tmp_path)
    x = np.random.default_rng(0).standard_normal((2, 4))
    found = evaluate(loaded.graph, {"x": x})
    assert list(found) == ["y", "z", "w", "k"]
    np.testing.assert_array_equal(found["y"], x)
    np.testing.assert_array_equal(found["w"], np.maximum(x, 0))
    np.testing.assert_array_equal(found["k"], [2.0])
    assert "output 'k' is a constant" in loaded.notes[0]


# ---- initializers ----


def test_load_takes_initializers_that_are_also_inputs_as_constants(tmp_path):
    builder = mlp()
    model = builder.model()
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    graph = load_model(path).graph
    assert graph.inputs == ["x"]
    assert_same_outputs(builder.model(), graph)


@pytest.mark.parametrize("linear", [True, False])
def test_load_writes_out_sparse_initializers(linear, tmp_path):
    weight = np.zeros((4, 3), np.float32)
    weight[[0, 2, 3], [1, 0, 2]] = [1.0, -2.0, 3.0]
    coordinates = np.argwhere(weight)
    indices = coordinates @ [3, 1] if linear else coordinates
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(weight[weight != 0], "w"),
        numpy_helper.from_array(indices.astype(np.int64), "i"),
        [4, 3],
    )
    model = parser.parse_model(HEADER + "g (float[2,4] x) => (float[2,3] y) { y = MatMul(x, w) }")
    model.graph.sparse_initializer.append(sparse)
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    np.testing.assert_array_equal(load_model(path).graph.values["w"].data, weight)
    sparse.indices.CopyFrom(numpy_helper.from_array(np.array([0, 5, 12], np.int64), "i"))
    model.graph.sparse_initializer[0].CopyFrom(sparse)
    onnx.save(model, path)
    with pytest.raises(ModelError, match="sparse initializer 'w' is damaged"):
        load_model(path)


def test_load_rejects_initializer_whose_data_and_shape_disagree(tmp_path):
    model = mlp().model()
    model.graph.initializer[0].dims[0] += 1
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    with pytest.raises(ModelError, match="is damaged"):
        load_model(path)
