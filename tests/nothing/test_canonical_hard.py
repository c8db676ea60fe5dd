"""Hard swish and hard sigmoid in the forms that exporters write."""

from __future__ import annotations

import numpy as np
import pytest
from canonical_checks import find, ops, rewritten
from models import ModelBuilder

from sparsetvm.rewrite.canonical import canonicalize
from sparsetvm.rewrite.canonical.fuse_hard_swish import fuse_hard_swish
from sparsetvm.rewrite.canonical.lower_hard_sigmoid import lower_hard_sigmoid
from sparsetvm.rewrite.canonical.move_scale_before_clip import move_scale_before_clip
from sparsetvm.rewrite.canonical.normalize_clip import normalize_clip

SWISH = (normalize_clip, lower_hard_sigmoid, fuse_hard_swish)
SCALE = (normalize_clip, move_scale_before_clip)


def clamped(b: ModelBuilder, x: str, high: float = 6.0) -> str:
    return b.op("Clip", b.op("Add", x, b.const(3.0)), b.const(0.0), b.const(high))


def hard_swish_forms(b: ModelBuilder, x: str, form: str) -> str:
    match form:
        case "operator":
            return b.op("HardSwish", x)
        case "hard_sigmoid":
            return b.op("Mul", b.op("HardSigmoid", x, alpha=1 / 6, beta=0.5), x)
        case "divided_gate":
            return b.op("Mul", x, b.op("Div", clamped(b, x), b.const(6.0)))
        case "divided_last":
            return b.op("Div", b.op("Mul", x, clamped(b, x)), b.const(6.0))
        case "multiplied":
            return b.op("Mul", b.op("Mul", x, clamped(b, x)), b.const(1 / 6))
    return b.hard_swish(x)


@pytest.mark.parametrize(
    "form", ["operator", "hard_sigmoid", "divided_gate", "divided_last", "multiplied", "min_of_max"]
)
def test_hard_swish_fuses(form: str) -> None:
    b = ModelBuilder(opset=17)
    x = b.conv(b.input("x", (1, 3, 4, 4)), 3, 4)
    graph = rewritten(b.output(hard_swish_forms(b, x, form)), *SWISH)
    assert ops(graph) == ["Conv", "HardSwish"]
    assert find(graph, "HardSwish").domain == "sparsetvm"


@pytest.mark.parametrize("case", ["other_bound", "onnx_default", "other_gate"])
def test_other_gates_stay(case: str) -> None:
    b = ModelBuilder(opset=17)
    x = b.input("x", (2, 8))
    if case == "onnx_default":
        gate = b.op("HardSigmoid", x)
    else:
        gate = b.op("Div", clamped(b, x, 5.9 if case == "other_bound" else 6.0), b.const(6.0))
    y = b.op("Mul", b.input("z", (2, 8)) if case == "other_gate" else x, gate)
    graph = rewritten(b.output(y), *SWISH, expect_change=None)
    assert "HardSwish" not in ops(graph)


@pytest.mark.parametrize("attrs", [{}, {"alpha": 1 / 6, "beta": 0.5}, {"alpha": -0.3, "beta": 0.1}])
def test_hard_sigmoid_becomes_a_line_and_a_clamp(attrs: dict[str, float]) -> None:
    b = ModelBuilder(opset=17)
    graph = rewritten(b.output(b.op("HardSigmoid", b.input("x", (2, 8)), **attrs)), lower_hard_sigmoid)
    assert ops(graph) == ["Mul", "Add", "Clip"]


@pytest.mark.parametrize("form", ["operator", "decomposed"])
def test_hard_sigmoid_after_a_layer_costs_a_clamp(form: str) -> None:
    b = ModelBuilder(opset=17)
    x = b.linear(b.input("x", (2, 8)), 8, 5)
    y = b.op("HardSigmoid", x, alpha=1 / 6) if form == "operator" else b.op("Div", clamped(b, x), b.const(6.0))
    graph = rewritten(b.output(y), canonicalize)
    assert ops(graph) == ["MatMul", "Add", "Clip"]
    assert find(graph, "Clip").attrs == pytest.approx({"low": 0.0, "high": 1.0})


@pytest.mark.parametrize("case", ["no_layer", "negative", "zero", "vector", "read_twice", "reciprocal"])
def test_scale_stays_behind_a_clamp_when(case: str) -> None:
    b = ModelBuilder()
    x = b.input("x", (2, 8))
    clip = b.op("Clip", x if case == "no_layer" else b.linear(x, 8, 8), b.const(-1.0), b.const(6.0))
    factor = {"negative": -0.5, "zero": 0.0, "vector": np.full(8, 0.5, np.float32)}.get(case, 0.5)
    y = b.op("Div", b.const(2.0), clip) if case == "reciprocal" else b.op("Mul", clip, b.const(factor))
    b.output(y, clip) if case == "read_twice" else b.output(y)
    graph = rewritten(b, *SCALE)
    assert ops(graph)[-1] in ("Mul", "Div")


def test_absent_bound_stays_absent() -> None:
    b = ModelBuilder()
    clip = b.op("Clip", b.linear(b.input("x", (2, 8)), 8, 8), b.const(-1.0))
    graph = rewritten(b.output(b.op("Mul", clip, b.const(0.5))), *SCALE)
    clip_after = find(graph, "Clip").attrs
    assert clip_after["low"] == -0.5
    assert clip_after["high"] == float(np.finfo(np.float32).max)
