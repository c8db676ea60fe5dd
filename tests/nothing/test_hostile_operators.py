"""Operators and attributes that crash ONNX's shape inference, or keep it busy for ever, are refused before."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from test_hostile_models import refused, small_model

from sparsetvm.frontend.safe_attributes import check_attributes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def with_attribute(
    op: str, name: str, value: str | int, *, by: str = "node", version: int = 17, inputs: tuple[str, ...] = ("x",)
) -> onnx.ModelProto:
    """An operator in the graph, in a branch, or in a function that gets its attribute from its call or that call's."""
    node = helper.make_node(op, list(inputs), ["y"], name="layer", **{name: value})
    if by == "node":
        return small_model(nodes=[node])
    if by == "branch":
        branch = helper.make_graph([node], "b", [], [onnx.ValueInfoProto(name="y")])
        chosen = helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
        return small_model(nodes=[chosen])
    whole = helper.make_attribute("what", value)
    node.attribute[0].CopyFrom(onnx.AttributeProto(name=name, ref_attr_name="how", type=whole.type))
    inner = helper.make_node("F", ["x"], ["y"], domain="local")
    inner.attribute.append(onnx.AttributeProto(name="how", ref_attr_name="what", type=whole.type))
    opsets = [helper.make_opsetid("", version), helper.make_opsetid("local", 1)]
    functions = [
        helper.make_function("local", "F", ["x"], ["y"], [node], opsets, ["how"]),
        helper.make_function("local", "G", ["x"], ["y"], [inner], opsets, ["what"]),
    ]
    if by == "default":
        del functions[1].attribute[:]
        functions[1].attribute_proto.append(whole)
    call = helper.make_node("G", ["x"], ["y"], name="layer", domain="local")
    if by == "call":
        call.attribute.append(whole)
    model = small_model(nodes=[call])
    model.opset_import.add(domain="local", version=1)
    model.functions.extend(functions)
    return model


NO_EQUATIONS = ["ij-", "ij<", "ij.", "....", "ij, ->\t", "i\nj", "ij->ij->ij", "ij->!"]
EVERYWHERE = [("branch", 17), ("call", 12), ("call", 17), ("default", 17)]


@pytest.mark.parametrize("equation", NO_EQUATIONS)
def test_equation_that_is_none_is_refused(equation, folder, monkeypatch):
    """Found by fuzzing: ONNX's shape inference never comes back from most of them."""
    refused(folder, with_attribute("Einsum", "equation", equation), "'.*' is no equation", monkeypatch)


@pytest.mark.parametrize(("by", "version"), EVERYWHERE)
def test_equation_that_is_none_is_refused_wherever_it_can_be(by, version, folder, monkeypatch):
    """Functions of another opset are converted, and shapes inferred, while they are inlined."""
    model = with_attribute("Einsum", "equation", "ij-", by=by, version=version)
    refused(folder, model, "'ij-' is no equation", monkeypatch)


@pytest.mark.parametrize(
    ("op", "name", "value", "match"),
    [
        ("LayerNormalization", "axis", 1 << 31, "2147483648 is no axis"),
        ("LayerNormalization", "axis", -(1 << 63), "-9223372036854775808 is no axis"),
        ("GatherND", "batch_dims", -(1 << 31), "-2147483648 is no number of axes"),
        ("GatherND", "batch_dims", -1, "-1 is no number of axes"),
    ],
)
@pytest.mark.parametrize("by", ["node", "call", "default"])
def test_axis_that_no_tensor_has_is_refused(op, name, value, match, by, folder, monkeypatch):
    """Found by trying extremes of every attribute: ONNX's shape inference reads beyond its arrays."""
    refused(folder, with_attribute(op, name, value, by=by, inputs=("x", "x")), match, monkeypatch)


@pytest.mark.parametrize("equation", ["ij", "i j -> j i", "...j->...", "i...->...i", "->", "ij->"])
@pytest.mark.parametrize("by", ["node", "call"])
def test_equation_goes_through(equation, by):
    check_attributes(with_attribute("Einsum", "equation", equation, by=by))


@pytest.mark.parametrize("scales", [[1 << 20, 1e-38, 1, 1], [1 << 31, 1e-38, 1, 1], [1e-38, 1, 1, 1 << 40]], ids=str)
def test_constant_that_is_resized_along_a_long_axis_is_refused_soon(scales, folder, monkeypatch):
    """Found by trying extremes of every scale: the empty result is small, the axes on the way are not."""
    constants = [helper.make_tensor("c", TensorProto.FLOAT, [1, 1, 4, 4], [0.0] * 16)]
    constants += [helper.make_tensor("s", TensorProto.FLOAT, [4], scales)]
    model = small_model(*constants, nodes=[helper.make_node("Resize", ["c", "", "s"], ["y"], name="layer")])
    refused(folder, model, "size zero", monkeypatch)


def test_constant_texts_are_not_searched(folder, monkeypatch):
    """A regular expression can take for ever, and so can the words that a vectorizer skips (found by fuzzing)."""
    texts = helper.make_tensor("t", TensorProto.STRING, [1], [b"a" * 40 + b"!"])
    node = helper.make_node("RegexFullMatch", ["t"], ["y"], name="layer", pattern="(a|aa)*$")
    model = small_model(texts, nodes=[node])
    model.opset_import[0].version = 20
    refused(folder, model, "unsupported operator: RegexFullMatch", monkeypatch)
    counts = {"ngram_counts": [0], "ngram_indexes": [0, 1], "pool_int64s": [5, 6], "mode": "TF"}
    node = helper.make_node(
        "TfIdfVectorizer", ["n"], ["y"], min_gram_length=1, max_gram_length=2, max_skip_count=1 << 31, **counts
    )
    numbers = helper.make_tensor("n", TensorProto.INT64, [12], list(range(12)))
    refused(folder, small_model(numbers, nodes=[node]), "unsupported operator: TfIdfVectorizer", monkeypatch)


def test_sequence_map_over_what_has_no_type_is_refused(folder, monkeypatch):
    """Found by fuzzing: the inliner crashes when it asks for the type of its elements."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["p"], ["q"])], "body",
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, [])],
        [helper.make_tensor_value_info("q", TensorProto.FLOAT, [])],
    )  # fmt: skip
    nodes = [
        helper.make_node("Relu", ["x"], ["z"], domain="unknown"),
        helper.make_node("SequenceMap", ["z"], ["y"], body=body),
    ]
    model = small_model(nodes=nodes)
    model.opset_import.add(domain="unknown", version=1)
    model.graph.value_info.add(name="z").type.denotation = "none"
    refused(folder, model, "unsupported operators: .*SequenceMap", monkeypatch)
