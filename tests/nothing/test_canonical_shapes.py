"""Clamps, transposes, reshapes, sums, and all passes together on whole models."""

from __future__ import annotations

import numpy as np
import pytest
from canonical_checks import find, ops, rewritten
from models import ModelBuilder, bert, conv_net, mlp, mobile_net

from sparsetvm.rewrite.canonical import CANONICAL_PASSES, canonicalize
from sparsetvm.rewrite.canonical.drop_trivial_transposes import drop_trivial_transposes
from sparsetvm.rewrite.canonical.merge_reshapes import merge_reshapes
from sparsetvm.rewrite.canonical.normalize_clip import normalize_clip
from sparsetvm.rewrite.canonical.remove_transpose_pairs import remove_transpose_pairs
from sparsetvm.rewrite.canonical.split_sum import split_sum

LARGEST = float(np.finfo(np.float32).max)


@pytest.mark.parametrize("opset", [9, 10, 11, 13])
def test_clip_becomes_attributes(opset):
    b = ModelBuilder(opset=opset)
    graph = rewritten(b.output(b.relu6(b.input("x", (2, 5)))), normalize_clip)
    node = find(graph, "Clip")
    assert (node.domain, node.attrs, len(node.inputs)) == ("sparsetvm", {"low": 0.0, "high": 6.0}, 1)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(None, 0.5, (-LARGEST, 0.5)), (-0.5, None, (-0.5, LARGEST)), (0.0, None, None), (0.0, float("inf"), None)],
)
def test_clip_with_one_bound(low, high, expected):
    b = ModelBuilder()
    bounds = ["" if bound is None else b.const(bound) for bound in (low, high)]
    graph = rewritten(b.output(b.op("Clip", b.input("x", (2, 50)), *bounds)), normalize_clip)
    if expected is None:
        assert ops(graph) == ["Relu"]
    else:
        assert find(graph, "Clip").attrs == {"low": expected[0], "high": expected[1]}


@pytest.mark.parametrize("form", ["min_max", "min_relu", "clip_relu", "relu_clip"])
def test_clip_merges_the_clamps_of_relu6(form):
    b = ModelBuilder()
    x = b.op("Mul", b.input("x", (2, 50)), b.const(5.0))
    if form == "min_max":
        y = b.op("Min", b.const(6.0), b.op("Max", x, b.const(0.0)))
    elif form == "min_relu":
        y = b.op("Min", b.relu(x), b.const(6.0))
    elif form == "clip_relu":
        y = b.op("Clip", b.relu(x), b.const(-1.0), b.const(6.0))
    else:
        y = b.relu(b.op("Clip", x, b.const(-1.0), b.const(6.0)))
    graph = rewritten(b.output(y), normalize_clip)
    assert ops(graph) == ["Mul", "Clip"]
    assert find(graph, "Clip").attrs == {"low": 0.0, "high": 6.0}


def test_clip_keeps_clamps_whose_ranges_do_not_meet():
    b = ModelBuilder()
    y = b.op("Clip", b.op("Clip", b.input("x", (2, 50)), b.const(2.0), b.const(3.0)), b.const(-1.0), b.const(1.0))
    assert find(rewritten(b.output(y), normalize_clip), "Clip").attrs == {"low": 1.0, "high": 1.0}


def test_clip_does_not_merge_over_a_value_that_is_read_elsewhere():
    b = ModelBuilder()
    r = b.relu(b.input("x", (2, 5)))
    graph = rewritten(b.output(b.op("Min", r, b.const(0.5)), r), normalize_clip)
    assert ops(graph) == ["Relu", "Clip"]


def test_clip_leaves_computed_bounds_and_vectors():
    b = ModelBuilder()
    x = b.input("x", (2, 5))
    y = b.op("Clip", x, b.op("ReduceMin", x, keepdims=0), b.const(1.0))
    z = b.op("Max", x, b.const(np.zeros(5, np.float32)))
    rewritten(b.output(y, z), normalize_clip, expect_change=False)


@pytest.mark.parametrize(
    ("first", "second", "left"),
    [([0, 2, 3, 1], [0, 3, 1, 2], 0), ([0, 2, 3, 1], [0, 2, 3, 1], 1), ([3, 2, 1, 0], [3, 2, 1, 0], 0)],
)
def test_transpose_pairs_are_composed(first, second, left):
    b = ModelBuilder()
    x = b.relu(b.input("x", (2, 3, 4, 5)))
    y = b.op("Neg", b.op("Transpose", b.op("Transpose", x, perm=first), perm=second))
    graph = rewritten(b.output(y), remove_transpose_pairs)
    assert ops(graph).count("Transpose") == left


def test_transpose_pair_between_input_and_output_keeps_the_names():
    b = ModelBuilder()
    y = b.op("Transpose", b.op("Transpose", b.input("x", (2, 3))), out="y")
    graph = rewritten(b.output(y), remove_transpose_pairs)
    assert (graph.inputs, graph.outputs) == (["x"], ["y"])


def test_transpose_pair_before_an_output_keeps_its_name():
    b = ModelBuilder()
    y = b.op("Transpose", b.op("Transpose", b.relu(b.input("x", (2, 3)))), out="y")
    graph = rewritten(b.output(y), remove_transpose_pairs)
    assert [(node.op, node.outputs) for node in graph.nodes] == [("Relu", ["y"])]


def test_transpose_chain_of_three_is_composed():
    b = ModelBuilder()
    x = b.input("x", (2, 3, 4))
    for _ in range(2):
        x = b.op("Transpose", x, perm=[1, 2, 0])
    shared = x
    y = b.op("Transpose", x, perm=[1, 2, 0])
    graph = rewritten(b.output(b.op("Neg", y), b.op("Exp", shared)), remove_transpose_pairs)
    assert sorted(ops(graph)) == ["Exp", "Neg", "Transpose"]


def test_reshape_chains_become_one():
    b = ModelBuilder()
    x = b.op("Flatten", b.relu(b.input("x", (2, 3, 4))), axis=1)
    x = b.op("Reshape", b.op("Unsqueeze", x, b.const([1])), b.const([4, 6]))
    graph = rewritten(b.output(b.op("Neg", x)), merge_reshapes)
    assert ops(graph) == ["Relu", "Reshape", "Neg"]


def test_reshape_chain_that_ends_where_it_began_is_removed():
    b = ModelBuilder()
    x = b.op("Reshape", b.op("Flatten", b.relu(b.input("x", (2, 3, 4)))), b.const([2, 3, 4]))
    assert ops(rewritten(b.output(b.op("Neg", x)), merge_reshapes)) == ["Relu", "Neg"]


@pytest.mark.parametrize("count", [2, 3, 4])
def test_sum_becomes_adds(count):
    b = ModelBuilder()
    inputs = [b.input(f"x{i}", (2, 3) if i % 2 else (3,)) for i in range(count)]
    graph = rewritten(b.output(b.op("Sum", *inputs)), split_sum)
    assert ops(graph) == ["Add"] * (count - 1)


# ---- all passes ----


@pytest.mark.parametrize("opset", [9, 11, 13, 17, 18, 21])
@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (conv_net, ["Add", "Conv", "Flatten", "Gemm", "GlobalAveragePool", "MaxPool", "Relu"]),
        (mobile_net, ["Clip", "Conv", "Gemm", "GlobalAveragePool", "Reshape", "Silu"]),
        (bert, ["Add", "Div", "Gelu", "LayerNormalization", "MatMul", "Reshape", "Softmax", "Transpose"]),
    ],
)
def test_canonicalize_brings_a_model_to_the_known_operators(build, expected, opset):
    assert sorted(set(ops(rewritten(build(opset=opset), canonicalize)))) == expected


def test_canonicalize_changes_nothing_when_there_is_nothing_to_do():
    rewritten(mlp(), canonicalize, expect_change=False)


def test_canonicalize_keeps_the_zeros_of_pruned_weights():
    graph = rewritten(conv_net(sparsity=0.75), canonicalize)
    weights = [graph.constant(node.inputs[1]) for node in graph.nodes if node.op == "Conv"]
    assert [round(float(np.mean(weight == 0)), 2) for weight in weights] == [0.0, 0.75, 0.75, 0.75, 0.75, 0.75]


def test_canonicalize_names_layers_by_their_onnx_nodes():
    builder = bert(layers=2)
    names = {node.name for node in builder.nodes}
    graph = rewritten(builder, canonicalize)
    assert {name for node in graph.nodes for name in node.origin} <= names


@pytest.mark.parametrize("run", CANONICAL_PASSES, ids=lambda run: run.__name__)
@pytest.mark.parametrize("build", [conv_net, mobile_net, bert])
def test_each_pass_alone_preserves_outputs(run, build):
    rewritten(build(), run, expect_change=None)


@pytest.mark.parametrize(
    ("shape", "perm", "trivial"),
    [
        ((1, 5, 4), [1, 0, 2], True),
        ((5, 1, 4), [1, 0, 2], True),
        ((1, 5, 1, 4), [2, 1, 3, 0], True),
        ((2, 5, 1), None, False),
        ((1, 5, 4), [0, 2, 1], False),
    ],
)
def test_transposes_that_move_axes_of_one_element_are_reshapes(shape, perm, trivial):
    b = ModelBuilder(opset=13)
    attrs = {} if perm is None else {"perm": perm}
    graph = rewritten(
        b.output(b.op("Transpose", b.input("x", shape), **attrs)), drop_trivial_transposes, expect_change=trivial
    )
    assert ops(graph) == ["Reshape" if trivial else "Transpose"]
