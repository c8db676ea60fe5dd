"""Which networks get one image per lane, and that values move into lanes once and leave them once."""

from __future__ import annotations

import numpy as np
import pytest
from canonical_checks import rewritten
from graph_eval import evaluate
from models import ModelBuilder, bottleneck_net, mobile_net, random_inputs

from sparsetvm.core.graph import SPARSETVM_DOMAIN, Graph
from sparsetvm.core.layout import BatchTiles, Plain
from sparsetvm.core.target import Target
from sparsetvm.rewrite import split_batch as splitting
from sparsetvm.rewrite.assign_layouts import assign_layouts
from sparsetvm.rewrite.canonical import canonicalize
from sparsetvm.rewrite.fuse_epilogues import fuse_epilogues
from sparsetvm.rewrite.lane_images import empty_lanes, layers_in_lanes
from sparsetvm.rewrite.make_layers import make_layers
from sparsetvm.rewrite.split_batch import split_batch
from sparsetvm.rewrite.split_strided_pointwise import split_strided_pointwise

TARGET = Target("cpu", "znver4", "avx512")
PASSES = (canonicalize, make_layers, fuse_epilogues)


def ending_with(op: str) -> ModelBuilder:
    """Small images, and then something that works on planes."""
    b = ModelBuilder(op, seed=3)
    x = b.relu(b.conv(b.input("x", (16, 3, 7, 7)), 3, 8, sparsity=0.5))
    y = b.conv(x, 8, 8, sparsity=0.5)
    if op == "Concat":
        y = b.op("Concat", x, y, axis=1)
    elif op == "Mul":
        y = b.op("Mul", y, b.op("Sigmoid", b.op("GlobalAveragePool", x)))
    else:
        y = b.conv(y, 8, 8, pad=6, dilation=6)
    return b.output(y)


def laid_out(builder: ModelBuilder, target: Target = TARGET) -> Graph:
    graph = rewritten(builder, *PASSES, split_strided_pointwise, expect_change=None)
    if target.kind == "cpu":
        split_batch(graph, target)
    assign_layouts(graph, target)
    return graph


def convolutions(graph: Graph) -> list[bool]:
    """For each convolution whether its result is in lanes."""
    nodes = [node for node in graph.nodes if node.is_op("conv2d", domain=SPARSETVM_DOMAIN)]
    return [isinstance(graph.values[node.outputs[0]].layout, BatchTiles) for node in nodes]


@pytest.mark.parametrize(("batch", "runs"), [(1, 0), (2, 0), (3, 0), (8, 0), (16, 1), (17, 0), (32, 2)])
def test_small_images_go_into_lanes_when_the_batch_is_a_multiple_of_them(batch: int, runs: int) -> None:
    graph = laid_out(bottleneck_net(batch=batch))
    assert convolutions(graph) == [runs > 0] * 7
    assert graph.chunks == max(runs, 1)


def test_values_enter_lanes_once_and_leave_them_with_the_pool() -> None:
    graph = laid_out(bottleneck_net(batch=16))
    moves = [node for node in graph.nodes if node.is_op("convert", domain=SPARSETVM_DOMAIN)]
    entered, *rest = moves
    assert entered.inputs == graph.inputs
    (pool,) = (node for node in graph.nodes if node.op == "GlobalAveragePool")
    assert isinstance(graph.values[pool.inputs[0]].layout, BatchTiles)
    assert isinstance(graph.values[pool.outputs[0]].layout, Plain)
    assert not [node for node in rest if isinstance(graph.values[node.inputs[0]].layout, BatchTiles)]


def test_zeros_stand_around_what_a_padded_convolution_reads_only() -> None:
    graph = laid_out(bottleneck_net(batch=16))
    for name, readers in graph.consumers().items():
        layout = graph.values[name].layout
        if isinstance(layout, BatchTiles):
            convs = [r.attrs["conv"] for r in readers if r.op == "conv2d" and r.inputs[0] == name]
            assert layout.pad == max((max(conv.pads) for conv in convs), default=0), name


@pytest.mark.parametrize(
    ("builder", "target"),
    [
        (bottleneck_net(batch=16, size=32), TARGET),  # planes of 32 columns leave few lanes empty
        (mobile_net(batch=16), TARGET),
        (ending_with("Concat"), TARGET),
        (ending_with("Mul"), TARGET),
        (ending_with("far"), TARGET),
        (bottleneck_net(batch=16), Target("cpu", "x86-64-v3", "avx2")),  # 8 lanes, and the batch is no chunk of 8
        (bottleneck_net(batch=16), Target("cuda", "sm_90", "cuda")),
    ],
    ids=["large", "depthwise", "concat", "scales", "far", "avx2", "cuda"],
)
def test_others_keep_their_planes(builder: ModelBuilder, target: Target) -> None:
    graph = rewritten(builder, *PASSES, expect_change=None)
    assert not layers_in_lanes(graph, target)


def test_empty_lanes_are_those_of_planes() -> None:
    """7 x 7 pixels with one zero column are 56 of 64 positions."""
    graph = rewritten(bottleneck_net(batch=16), *PASSES, expect_change=None)
    at = next(i for i, node in enumerate(graph.nodes) if node.op == "conv2d")
    work = 2 * np.count_nonzero(graph.nodes[at].attrs["weight"]) * 49
    assert empty_lanes(graph, TARGET)[at] == pytest.approx(work * (64 / 49 - 1))


def test_chunks_grow_to_the_lanes_where_two_images_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between a block's first convolution and its end lives what the block adds."""
    b = ModelBuilder("stem", seed=1)
    x = b.relu(b.conv(b.input("x", (32, 3, 28, 28)), 3, 16, stride=2))
    y = b.relu(b.conv(x, 16, 4, stride=2, sparsity=0.5))
    skip = b.conv(x, 16, 64, kernel=1, pad=0, stride=2, sparsity=0.5)
    y = b.conv(y, 4, 64, sparsity=0.5)
    x = b.relu(b.op("Add", y, skip))
    b.output(b.op("Flatten", b.conv(x, 64, 4, kernel=7, pad=0)))
    graph = rewritten(b, *PASSES, split_strided_pointwise, expect_change=None)
    inputs = random_inputs(b.model())
    expected = evaluate(graph, inputs)
    monkeypatch.setattr(splitting, "_CHUNK_BYTES", 32_000)
    monkeypatch.setattr(splitting, "_FURTHER_IN_LANES", 0.0)
    assert split_batch(graph, TARGET)
    gathers = [node for node in graph.nodes if node.op == "gather"]
    assert len(gathers) == 2
    assert {node.attrs["count"] * graph.values[node.inputs[0]].shape[0] for node in gathers} == {16}
    assert [len([n for n in part if n.op == "gather"]) for part in graph.parts()] == [0, 2]
    assert graph.runs(graph.outputs[0]) == 2
    first, rest = graph.parts()
    slice_of = graph.values["x"].shape[0]
    values: dict[str, list[np.ndarray]] = {node.inputs[0]: [] for node in gathers}
    for at in range(0, 16, slice_of):
        part = Graph("part", graph.opset, first, graph.values, ["x"], list(values))
        for name, value in evaluate(part, {"x": inputs["x"][at : at + slice_of]}).items():
            values[name].append(value)
    gathered = {node.outputs[0]: np.concatenate(values[node.inputs[0]]) for node in gathers}
    part = Graph("part", graph.opset, rest[2:], graph.values, list(gathered), graph.outputs)
    for name, value in evaluate(part, gathered).items():
        np.testing.assert_allclose(value, expected[name][:16], rtol=1e-5, atol=1e-6)
