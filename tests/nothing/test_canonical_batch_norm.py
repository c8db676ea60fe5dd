"""BatchNormalization, additions and factors fold into the layer before them."""

from __future__ import annotations

import numpy as np
import pytest
from canonical_checks import find, ops, rewritten
from models import ModelBuilder

from sparsetvm.errors import ModelError
from sparsetvm.frontend.load import load_model
from sparsetvm.rewrite.canonical import canonicalize
from sparsetvm.rewrite.canonical.fold_add_into_bias import fold_add_into_bias
from sparsetvm.rewrite.canonical.fold_batch_norm import fold_batch_norm
from sparsetvm.rewrite.canonical.fold_scale_into_weights import fold_scale_into_weights
from sparsetvm.rewrite.canonical.merge_affine import merge_affine


@pytest.mark.parametrize("opset", [9, 13, 15])
@pytest.mark.parametrize("bias", [False, True])
def test_batch_norm_folds_into_conv(opset, bias):
    b = ModelBuilder(opset=opset)
    y = b.batch_norm(b.conv(b.input("x", (1, 4, 6, 6)), 4, 8, bias=bias, sparsity=0.75, groups=2), 8, epsilon=1e-3)
    graph = rewritten(b.output(y), canonicalize)
    assert ops(graph) == ["Conv"]
    weight = graph.constant(graph.nodes[0].inputs[1])
    assert np.mean(weight == 0) == 0.75
    assert weight.dtype == np.float32
    assert any(name.startswith("BatchNormalization") for name in graph.nodes[0].origin)
    assert graph.nodes[0].name.startswith("Conv")


@pytest.mark.parametrize("bias", [False, True])
def test_batch_norm_folds_into_gemm(bias):
    b = ModelBuilder()
    attrs = {"beta": 0.5, "alpha": 2.0} if bias else {"alpha": 2.0}
    y = b.batch_norm(b.gemm(b.input("x", (3, 6)), 6, 8, bias=bias, **attrs), 8)
    assert ops(rewritten(b.output(y), canonicalize)) == ["Gemm"]


def test_batch_norm_folds_into_matmul_and_its_bias():
    b = ModelBuilder()
    y = b.batch_norm(b.linear(b.input("x", (3, 6)), 6, 8), 8)
    assert ops(rewritten(b.output(y), canonicalize)) == ["MatMul", "Add"]


def test_batch_norm_folds_through_two_layers_in_a_row():
    b = ModelBuilder()
    x = b.relu(b.batch_norm(b.conv(b.input("x", (1, 3, 5, 5)), 3, 4), 4))
    graph = rewritten(b.output(b.batch_norm(b.conv(x, 4, 4), 4)), canonicalize)
    assert ops(graph) == ["Conv", "Relu", "Conv"]


def test_batch_norm_becomes_mul_and_add_when_alone():
    b = ModelBuilder()
    graph = rewritten(b.output(b.relu(b.batch_norm(b.input("x", (2, 3, 4, 4)), 3))), fold_batch_norm)
    assert ops(graph) == ["Mul", "Add", "Relu"]
    assert graph.values[graph.nodes[0].inputs[1]].shape == (3, 1, 1)


def test_batch_norm_stays_outside_when_conv_is_read_twice():
    b = ModelBuilder()
    c = b.conv(b.input("x", (1, 3, 4, 4)), 3, 4)
    graph = rewritten(b.output(b.op("Add", b.batch_norm(c, 4), c)), canonicalize)
    assert ops(graph) == ["Conv", "Mul", "Add", "Add"]


def test_batch_norm_stays_outside_when_conv_is_an_output():
    b = ModelBuilder()
    c = b.conv(b.input("x", (1, 3, 4, 4)), 3, 4)
    graph = rewritten(b.output(b.batch_norm(c, 4), c), canonicalize)
    assert ops(graph) == ["Conv", "Mul", "Add"]


@pytest.mark.parametrize("op", ["Add", "Sub"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 8, 1, 1), (1,), ()])
def test_add_folds_into_conv_bias(op, bias, shape):
    b = ModelBuilder()
    c = b.conv(b.input("x", (1, 4, 5, 5)), 4, 8, bias=bias)
    constant = b.const(b.rng.standard_normal(shape).astype(np.float32))
    graph = rewritten(b.output(b.op(op, c, constant)), fold_add_into_bias)
    assert ops(graph) == ["Conv"]
    assert graph.values[graph.nodes[0].inputs[2]].shape == (8,)


@pytest.mark.parametrize("shape", [(1, 5), (5, 5), (8, 5, 5), (1, 1, 8, 1, 1)])
def test_add_stays_when_it_is_not_per_channel(shape):
    b = ModelBuilder()
    c = b.conv(b.input("x", (1, 4, 5, 5)), 4, 8)
    constant = b.const(b.rng.standard_normal(shape).astype(np.float32))
    rewritten(b.output(b.op("Add", c, constant)), fold_add_into_bias, expect_change=False)


def test_add_keeps_beta_of_gemm():
    b = ModelBuilder()
    y = b.op("Add", b.const(b.vector(8)), b.gemm(b.input("x", (3, 6)), 6, 8, beta=0.5))
    assert find(rewritten(b.output(y), fold_add_into_bias), "Gemm").attrs["beta"] == 1.0


def test_sub_from_a_constant_is_not_a_bias():
    b = ModelBuilder()
    y = b.op("Sub", b.const(1.0), b.conv(b.input("x", (1, 4, 5, 5)), 4, 8))
    rewritten(b.output(y), fold_add_into_bias, expect_change=False)


@pytest.mark.parametrize("op", ["Mul", "Div"])
@pytest.mark.parametrize("layer", ["Conv", "Gemm", "MatMul", "MatMul3", "linear"])
@pytest.mark.parametrize("per_feature", [False, True])
def test_scale_folds_into_weights(op, layer, per_feature):
    b = ModelBuilder()
    factor = b.vector(8, 0.2, 2.0) if per_feature else np.float32(0.125)
    if layer == "Conv":
        y = b.conv(b.input("x", (1, 4, 5, 5)), 4, 8)
        factor = factor.reshape(8, 1, 1) if per_feature else factor
    elif layer == "Gemm":
        y = b.gemm(b.input("x", (3, 6)), 6, 8)
    else:
        shape = (2, 3, 6) if layer == "MatMul3" else (3, 6)
        y = b.linear(b.input("x", shape), 6, 8, bias=layer == "linear", sparsity=0.5)
    graph = rewritten(b.output(b.op(op, y, b.const(factor))), fold_scale_into_weights)
    assert ops(graph) == (["MatMul", "Add"] if layer == "linear" else [layer.rstrip("3")])


@pytest.mark.parametrize("case", ["shared", "not_per_feature", "inverse", "computed_weight", "infinite"])
def test_scale_stays_outside_when(case):
    b = ModelBuilder()
    x = b.input("x", (8, 8))
    y = b.op("MatMul", x, x) if case == "computed_weight" else b.linear(x, 8, 8, bias=False)
    if case == "inverse":
        out = b.op("Div", b.const(2.0), y)
    elif case == "not_per_feature":
        out = b.op("Mul", y, b.const(b.weight((8, 1), 1)))
    elif case == "infinite":
        out = b.op("Relu", b.op("Div", y, b.const(float("inf"))))
    else:
        out = b.op("Mul", y, b.const(2.0))
    out = b.op("Add", out, y) if case == "shared" else out
    rewritten(b.output(out), fold_scale_into_weights, expect_change=False)


def test_affine_chain_becomes_one_product_and_one_sum():
    b = ModelBuilder()
    x = b.op("Concat", b.input("x", (2, 3, 4, 4)), b.input("z", (2, 5, 4, 4)), axis=1)
    x = b.batch_norm(x, 8)
    x = b.op("Div", x, b.const(b.vector(8, 0.1, 2.0).reshape(1, 8, 1, 1)))
    x = b.op("Sub", x, b.const(b.vector(8).reshape(8, 1, 1)))
    x = b.op("Mul", b.const(0.5), b.op("Add", x, b.const(1.0)))
    graph = rewritten(b.output(b.relu(x)), canonicalize)
    assert ops(graph) == ["Concat", "Mul", "Add", "Relu"]


@pytest.mark.parametrize("case", ["inverse", "read_twice", "broadcast"])
def test_affine_chain_stays_when(case):
    b = ModelBuilder()
    m = b.op("Add", b.input("x", (1, 4)), b.const(1.5))
    if case == "inverse":
        y = b.op("Sub", b.const(1.0), m)
    elif case == "broadcast":
        y = b.op("Add", m, b.const(b.weight((3, 4), 1)))
    else:
        y = b.op("Mul", b.op("Add", m, b.const(1.0)), m)
    rewritten(b.output(y), merge_affine, expect_change=False)


def test_scale_gives_each_user_of_a_shared_weight_its_own():
    b = ModelBuilder()
    x = b.input("x", (3, 6))
    w = b.const(b.weight((6, 6), 6))
    y = b.op("Mul", b.op("MatMul", b.op("Mul", b.op("MatMul", x, w), b.const(2.0)), w), b.const(3.0))
    assert ops(rewritten(b.output(y), fold_scale_into_weights)) == ["MatMul", "MatMul"]


def test_batch_norm_with_a_wrong_number_of_statistics_is_rejected(tmp_path):
    b = ModelBuilder()
    y = b.batch_norm(b.conv(b.input("x", (1, 4, 6, 6)), 4, 8), 8)
    graph = load_model(b.output(y).save(tmp_path / "m.onnx")).graph
    graph.values[graph.nodes[-1].inputs[3]].data = np.zeros(5, np.float32)
    with pytest.raises(ModelError, match="8 numbers, one for each channel"):
        fold_batch_norm(graph)
