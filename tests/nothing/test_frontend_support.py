"""Unsupported operators and types are named together with their layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from models import ModelBuilder
from onnx import TensorProto, parser

from sparsetvm.errors import ModelError
from sparsetvm.frontend.load import load_model
from sparsetvm.frontend.support import CONTRIB_OPS, DYNAMIC_OPS, QUANTIZED_OPS, SUPPORTED_OPS, is_supported

HEADER = '<ir_version: 9, opset_import: ["" : 17, "com.microsoft" : 1, "own" : 1]>\n'


def load_error(text: str, folder: Path) -> str:
    path = folder / "m.onnx"
    onnx.save(parser.parse_model(HEADER + text), path)
    with pytest.raises(ModelError) as caught:
        load_model(path)
    assert caught.value.exit_code == 3
    assert caught.value.hint
    return str(caught.value)


def test_supported_sets_are_disjoint():
    assert not SUPPORTED_OPS & (DYNAMIC_OPS | CONTRIB_OPS | QUANTIZED_OPS)
    assert is_supported("Conv", "")
    assert not is_supported("Conv", "com.microsoft")


def test_load_names_every_unsupported_operator_with_its_layers(tmp_path):
    text = """g (float[2,4] x) => (y) {
        [first] a = own.Foo(x)
        [fine] b = Relu(a)
        [second] c = own.Foo(b)
        [third] y = NonZero(c)
    }"""
    message = load_error(text, tmp_path)
    assert "own.Foo (layers: first, second)" in message
    assert "NonZero (layers: third)" in message
    assert "fine" not in message


def test_load_suggests_another_export_when_model_was_optimised(tmp_path):
    message = load_error("g (float[2,4] x) => (y) { y = com.microsoft.FusedConv(x) }", tmp_path)
    assert "before any optimisation of ONNX Runtime" in message


@pytest.mark.parametrize("op", ["Loop", "NonZero", "Unique", "GRU", "SequenceConstruct"])
def test_load_rejects(op, tmp_path):
    assert f"{op} (layers: the_layer)" in load_error(f"g (float[2,4] x) => (y) {{ [the_layer] y = {op}(x) }}", tmp_path)


def test_load_suggests_the_operator_that_was_meant(tmp_path):
    assert "did you mean 'Relu'" in load_error("g (float[2,4] x) => (y) { y = ReLu(x) }", tmp_path)


def test_load_says_that_quantised_models_are_not_supported(tmp_path):
    text = "g (float[2,4] x, float s, uint8 z) => (y) { [q] y = QuantizeLinear(x, s, z)\n [r] w = GRU(y) }"
    message = load_error(text, tmp_path)
    assert "quantised models are not supported yet: QuantizeLinear (layers: q)" in message


def test_load_folds_quantised_weights_of_a_float_model(tmp_path):
    b = ModelBuilder()
    weight = b.op(
        "DequantizeLinear", b.const(np.arange(12, dtype=np.int8).reshape(4, 3)), b.const(0.5), b.const(np.int8(2))
    )
    path = b.output(b.op("MatMul", b.input("x", (1, 4)), weight)).save(tmp_path / "m.onnx")
    graph = load_model(path).graph
    np.testing.assert_allclose(graph.constant(graph.nodes[0].inputs[1]), (np.arange(12).reshape(4, 3) - 2) * 0.5)


@pytest.mark.parametrize(
    ("dtype", "elem_type"),
    [
        ("float64", TensorProto.DOUBLE),
        ("bfloat16", TensorProto.BFLOAT16),
        ("int32", TensorProto.INT32),
    ],
)
def test_load_names_layer_and_type_of_weights_that_are_neither_float32_nor_float16(dtype, elem_type, tmp_path):
    b = ModelBuilder()
    x = b.input("x", (1, 4), elem_type)
    weight = onnx.helper.make_tensor("weight", elem_type, [4, 3], [1] * 12)
    b.initializers.append(weight)
    path = b.output(b.op("MatMul", b.op("Identity", x), "weight", name="fc1")).save(tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=rf"layer 'fc1': MatMul has (weights|inputs) of type {dtype}"):
        load_model(path)


def test_load_names_the_layer_when_inputs_do_not_fit(tmp_path):
    message = load_error("g (float[2,4] x, float[5,3] w) => (y) { [fc] y = MatMul(x, w) }", tmp_path)
    assert "layer 'fc'" in message
    assert "2x4, 5x3" in message


@pytest.mark.parametrize("node", ["Concat(x, x)", "Relu(x, x)", "Relu<alpha=1>(x)", "Softmax<axis=1.5>(x)"])
def test_load_rejects_nodes_that_break_the_schema(node, tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(parser.parse_model(HEADER + f"g (float[2,4] x) => (y) {{ [bad] y = {node} }}"), path)
    with pytest.raises(ModelError, match="layer 'bad': not a valid"):
        load_model(path)


def test_load_asks_for_a_newer_opset_when_the_operator_came_later(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(parser.parse_model(HEADER + "g (float[2,4] x) => (float[2,4] y) { [late] y = Mish(x) }"), path)
    with pytest.raises(ModelError, match=r"unsupported operator: Mish \(layers: late\)\n.*newer one"):
        load_model(path)
