"""GELU, SiLU, hard swish and layer normalisation in the forms that exporters write."""

from __future__ import annotations

import math

import numpy as np
import pytest
from canonical_checks import find, ops, rewritten
from models import ModelBuilder

from sparsetvm.rewrite.canonical.fuse_gelu import fuse_gelu
from sparsetvm.rewrite.canonical.fuse_layer_norm import fuse_layer_norm
from sparsetvm.rewrite.canonical.fuse_silu import fuse_silu

SQRT_HALF = math.sqrt(0.5)


def erf_forms(b: ModelBuilder, x: str, form: str) -> str:
    def bent(inner: str) -> str:
        return b.op("Add", b.op("Erf", inner), b.const(1.0))

    divided = b.op("Div", x, b.const(math.sqrt(2.0)))
    scaled = b.op("Mul", b.const(SQRT_HALF), x)
    half = b.const(0.5)
    match form:
        case "half_last":
            return b.op("Mul", b.op("Mul", x, bent(divided)), half)
        case "half_first":
            return b.op("Mul", b.op("Mul", half, x), bent(scaled))
        case "half_on_erf":
            return b.op("Mul", x, b.op("Mul", bent(divided), half))
        case "half_inside":
            return b.op("Mul", b.op("Add", half, b.op("Mul", half, b.op("Erf", scaled))), x)
        case "divided_by_two":
            return b.op("Div", b.op("Mul", bent(scaled), x), b.const(2.0))
        case "one_first":
            return b.op(
                "Mul", b.op("Mul", x, half), b.op("Add", b.const(np.ones((1, 1), np.float32)), b.op("Erf", divided))
            )
    raise ValueError(form)


@pytest.mark.parametrize(
    "form", ["half_last", "half_first", "half_on_erf", "half_inside", "divided_by_two", "one_first"]
)
def test_gelu_fuses_erf_form(form):
    b = ModelBuilder()
    x = b.linear(b.input("x", (2, 4, 6)), 6, 8)
    graph = rewritten(b.output(b.op("Neg", erf_forms(b, x, form))), fuse_gelu)
    assert ops(graph) == ["MatMul", "Add", "Gelu", "Neg"]
    assert find(graph, "Gelu").attrs == {"approximate": "none"}
    assert find(graph, "Gelu").inputs == [x]
    assert any(name.startswith("Erf") for name in find(graph, "Gelu").origin)


def test_gelu_fuses_its_input_when_that_is_itself_a_product():
    b = ModelBuilder()
    x = b.op("Mul", b.input("x", (2, 4)), b.const(3.0))
    assert ops(rewritten(b.output(b.gelu(x)), fuse_gelu)) == ["Mul", "Gelu"]


@pytest.mark.parametrize("cube", ["Pow", "Mul", "factored"])
def test_gelu_fuses_tanh_form(cube):
    b = ModelBuilder()
    x = b.op("Relu", b.input("x", (2, 8)))
    if cube == "Pow":
        y = b.gelu_tanh(x)
    else:
        square = b.op("Mul", x, x)
        if cube == "Mul":
            inner = b.op("Add", x, b.op("Mul", b.op("Mul", square, x), b.const(0.044715)))
        else:  # x * (1 + 0.044715 x^2)
            inner = b.op("Mul", x, b.op("Add", b.op("Mul", square, b.const(0.044715)), b.const(1.0)))
        bent = b.op("Add", b.op("Tanh", b.op("Mul", inner, b.const(math.sqrt(2 / math.pi)))), b.const(1.0))
        y = b.op("Mul", x, b.op("Mul", bent, b.const(0.5)))
    graph = rewritten(b.output(y), fuse_gelu)
    assert ops(graph) == ["Relu", "Gelu"]
    assert find(graph, "Gelu").attrs == {"approximate": "tanh"}


@pytest.mark.parametrize("case", ["constant", "other_operand", "read_twice", "vector"])
def test_gelu_stays_when(case):
    b = ModelBuilder()
    x = b.input("x", (2, 8))
    erf = b.op("Erf", b.op("Mul", x, b.const(0.7 if case == "constant" else SQRT_HALF)))
    one = b.const(np.linspace(0.9, 1.1, 8).astype(np.float32)) if case == "vector" else b.const(1.0)
    other = b.input("z", (2, 8)) if case == "other_operand" else x
    y = b.op("Mul", b.op("Mul", other, b.op("Add", erf, one)), b.const(0.5))
    b.output(y, erf) if case == "read_twice" else b.output(y)
    rewritten(b, fuse_gelu, expect_change=False)


@pytest.mark.parametrize("form", ["x_first", "x_last", "exp"])
def test_silu_fuses(form):
    b = ModelBuilder()
    x = b.conv(b.input("x", (1, 3, 4, 4)), 3, 4)
    if form == "exp":
        y = b.op("Div", x, b.op("Add", b.const(1.0), b.op("Exp", b.op("Neg", x))))
    else:
        gate = b.op("Sigmoid", x)
        y = b.op("Mul", x, gate) if form == "x_first" else b.op("Mul", gate, x)
    graph = rewritten(b.output(y), fuse_silu)
    assert ops(graph) == ["Conv", "Silu"]
    assert find(graph, "Silu").domain == "sparsetvm"


def test_silu_leaves_quick_gelu_and_plain_sigmoid():
    b = ModelBuilder()
    x = b.input("x", (2, 8))
    quick = b.op("Mul", x, b.op("Sigmoid", b.op("Mul", x, b.const(1.702))))
    rewritten(b.output(quick, b.op("Sigmoid", x)), fuse_silu, expect_change=False)


def test_silu_leaves_a_gate_of_another_shape():
    b = ModelBuilder()
    x = b.input("x", (1, 4))
    y = b.op("Mul", b.op("Sigmoid", x), b.op("Expand", x, b.const([3, 4])))
    rewritten(b.output(y), fuse_silu, expect_change=False)


def layer_norm_forms(b: ModelBuilder, x: str, features: int, form: str) -> str:
    mean = b.reduce_mean(x, [2] if form == "positive_axis" else [-1])
    centred = b.op("Sub", x, mean)
    again = b.op("Sub", x, mean) if form == "difference_twice" else centred
    square = b.op("Mul", again, again) if form == "mul_square" else b.op("Pow", again, b.const(2.0))
    variance = b.op("Add", b.const(1e-6), b.reduce_mean(square, [-1]))
    if form == "reciprocal":
        normal = b.op("Mul", b.op("Reciprocal", b.op("Sqrt", variance)), centred)
    else:
        normal = b.op("Div", centred, b.op("Sqrt", variance))
    if form == "no_affine":
        return normal
    if form != "no_gamma":
        normal = b.op("Mul", b.const(b.vector(features, 0.1, 1.0)), normal)
    return normal if form == "no_beta" else b.op("Add", normal, b.const(b.vector(features).reshape(1, features)))


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize(
    "form",
    ["plain", "mul_square", "difference_twice", "reciprocal", "no_affine", "no_gamma", "no_beta", "positive_axis"],
)
def test_layer_norm_fuses(form, opset):
    b = ModelBuilder(opset=opset)
    x = b.op("Exp", b.input("x", (2, 5, 8)))
    graph = rewritten(b.output(b.op("Neg", layer_norm_forms(b, x, 8, form))), fuse_layer_norm)
    assert ops(graph) == ["Exp", "LayerNormalization", "Neg"]
    node = find(graph, "LayerNormalization")
    assert node.attrs["axis"] == -1
    assert node.attrs["epsilon"] == pytest.approx(1e-6)
    assert [graph.values[name].shape for name in node.inputs] == [(2, 5, 8), (8,), (8,)]
    assert node.outputs == find(graph, "Neg").inputs


def test_layer_norm_leaves_a_norm_over_another_axis():
    b = ModelBuilder()
    x = b.input("x", (2, 5, 8))
    centred = b.op("Sub", x, b.reduce_mean(x, [1]))
    variance = b.reduce_mean(b.op("Pow", centred, b.const(2.0)), [1])
    y = b.op("Div", centred, b.op("Sqrt", b.op("Add", variance, b.const(1e-5))))
    rewritten(b.output(y), fuse_layer_norm, expect_change=False)


def test_layer_norm_keeps_a_scale_that_is_not_per_feature_outside():
    b = ModelBuilder()
    x = b.input("x", (2, 5, 8))
    y = b.op("Mul", layer_norm_forms(b, x, 8, "no_affine"), b.const(b.weight((5, 8), 1)))
    assert ops(rewritten(b.output(y), fuse_layer_norm)) == ["LayerNormalization", "Mul"]
