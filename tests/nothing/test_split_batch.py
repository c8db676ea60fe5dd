"""split_batch cuts the batch of a graph whose samples are independent, and leaves every other graph alone."""

from __future__ import annotations

import numpy as np
import pytest
from canonical_checks import rewritten
from graph_eval import evaluate
from models import ModelBuilder, bert, conv_net, mobile_net, random_inputs, shrinking_net
from onnx import helper, numpy_helper

from sparsetvm.core.graph import Graph, Node
from sparsetvm.core.target import Target
from sparsetvm.rewrite import split_batch as pass_under_test
from sparsetvm.rewrite.canonical import canonicalize
from sparsetvm.rewrite.fuse_epilogues import fuse_epilogues
from sparsetvm.rewrite.make_layers import make_layers
from sparsetvm.rewrite.split_batch import split_batch

TARGET = Target("cpu", "skylake-avx512", "avx512")


@pytest.fixture
def small_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pass_under_test, "_CHUNK_BYTES", 1)


def layered(builder: ModelBuilder) -> Graph:
    return rewritten(builder, canonicalize, make_layers, fuse_epilogues, expect_change=None)


@pytest.mark.usefixtures("small_caches")
def test_graph_without_nodes_or_with_a_constant_output_stays_whole() -> None:
    """Found by fuzzing. A constant of the whole batch would have been an output of every chunk."""
    builder = ModelBuilder()
    builder.input("x", (2, 4))
    builder.nodes.append(helper.make_node("Constant", [], ["y"], value=numpy_helper.from_array(np.ones((2, 4), "f"))))
    graph = layered(builder.output("y"))
    assert not split_batch(graph, TARGET)
    builder.op("Relu", "x", out="z")
    graph = layered(builder.output("z"))
    assert not split_batch(graph, TARGET)
    assert graph.chunks == 1


@pytest.mark.parametrize("make", [conv_net, mobile_net, bert], ids=["conv", "mobile", "bert"])
@pytest.mark.usefixtures("small_caches")
def test_chunks_of_a_batch_compute_what_the_batch_computes(make) -> None:  # type: ignore[no-untyped-def]
    builder = make(batch=4)
    inputs = random_inputs(builder.model())
    graph = layered(builder)
    expected = evaluate(graph, inputs)
    assert split_batch(graph, TARGET)
    assert graph.chunks == 4
    assert {graph.model_shape(name)[0] for name in (*graph.inputs, *graph.outputs)} == {4}
    parts = [evaluate(graph, {k: v[i : i + 1] for k, v in inputs.items()}) for i in range(4)]
    for name, value in expected.items():
        np.testing.assert_allclose(np.concatenate([part[name] for part in parts]), value)


def test_batch_that_fits_the_caches_stays_whole() -> None:
    graph = layered(conv_net(batch=4))
    assert not split_batch(graph, TARGET)
    assert graph.chunks == 1


def test_chunk_is_the_largest_divisor_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    builder = ModelBuilder("wide", seed=0)
    builder.output(builder.linear(builder.input("x", (12, 100)), 100, 100))
    graph = layered(builder)
    monkeypatch.setattr(pass_under_test, "_CHUNK_BYTES", 5 * 800)
    assert split_batch(graph, TARGET)
    assert graph.chunks == 3


@pytest.mark.usefixtures("small_caches")
def test_nodes_that_mix_samples_keep_the_batch_whole() -> None:
    builder = ModelBuilder("mixed", seed=0)
    y = builder.linear(builder.input("x", (4, 8)), 8, 4)
    builder.output(builder.op("Softmax", y, axis=0))
    assert not split_batch(layered(builder), TARGET)


@pytest.mark.usefixtures("small_caches")
def test_constants_that_differ_by_sample_keep_the_batch_whole() -> None:
    builder = ModelBuilder("offsets", seed=0)
    y = builder.linear(builder.input("x", (4, 8)), 8, 4)
    builder.output(builder.op("Mul", y, builder.const(np.arange(16, dtype=np.float32).reshape(4, 4))))
    assert not split_batch(layered(builder), TARGET)


@pytest.mark.usefixtures("small_caches")
def test_single_sample_stays_whole() -> None:
    assert not split_batch(layered(conv_net()), TARGET)


def test_chunks_grow_where_weights_outweigh_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    builder = shrinking_net(batch=8)
    inputs = random_inputs(builder.model())
    graph = layered(builder)
    expected = evaluate(graph, inputs)
    monkeypatch.setattr(pass_under_test, "_CHUNK_BYTES", 7_000)
    assert split_batch(graph, TARGET)
    (gather,) = (node for node in graph.nodes if node.op == "gather")
    assert (graph.chunks, gather.inputs, gather.attrs) == (8, ["small"], {"count": 8})
    assert [graph.runs(name) for name in ("small", gather.outputs[0], *graph.outputs)] == [8, 1, 1]
    assert graph.model_shape(graph.outputs[0]) == (8, 5)
    assert not any("small" in node.inputs for node in graph.nodes if node is not gather)

    first, rest = graph.parts()
    samples = [{"x": inputs["x"][at : at + 1]} for at in range(8)]
    images = [evaluate(part_of(graph, first, ["x"], ["small"]), sample)["small"] for sample in samples]
    batch = {gather.outputs[0]: np.concatenate(images)}
    found = evaluate(part_of(graph, rest[1:], list(batch), graph.outputs), batch)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value)


def part_of(graph: Graph, nodes: list[Node], inputs: list[str], outputs: list[str]) -> Graph:
    return Graph("part", graph.opset, nodes, graph.values, inputs, outputs)


def test_chunks_do_not_grow_for_a_few_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 4x4 with one output channel the copy and the tensors are more than the weights."""
    builder = ModelBuilder("light", seed=0)
    x = builder.relu(builder.conv(builder.input("x", (8, 4, 12, 12)), 4, 8))
    small = builder.op("MaxPool", x, kernel_shape=[3, 3], strides=[3, 3])
    builder.output(builder.op("Flatten", builder.conv(small, 8, 1, 1)))
    graph = layered(builder)
    monkeypatch.setattr(pass_under_test, "_CHUNK_BYTES", 7_000)
    assert split_batch(graph, TARGET)
    assert (graph.chunks, [node.op for node in graph.nodes if node.op == "gather"]) == (8, [])


def test_chunks_stay_where_a_later_node_reads_two_values(monkeypatch: pytest.MonkeyPatch) -> None:
    builder = ModelBuilder("branches", seed=0)
    x = builder.relu(builder.conv(builder.input("x", (8, 4, 12, 12)), 4, 8))
    left, right = (builder.op(op, x, kernel_shape=[4, 4], strides=[4, 4]) for op in ("MaxPool", "AveragePool"))
    builder.output(builder.op("Flatten", builder.op("Add", left, right)))
    graph = layered(builder)
    monkeypatch.setattr(pass_under_test, "_CHUNK_BYTES", 4 * (4 + 8) * 144)
    assert split_batch(graph, TARGET)
    assert graph.chunks == 8
    gathered = {name for node in graph.nodes if node.op == "gather" for name in node.inputs}
    assert not gathered & {left, right}
