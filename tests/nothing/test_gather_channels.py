"""Channels that are moved are read where they were computed."""

from __future__ import annotations

import numpy as np
import pytest
from canonical_checks import ops, rewritten
from emulator.network import run_network
from models import ModelBuilder, random_inputs, relative_error, run_onnxruntime
from onnx import helper

from sparsetvm.build.remainder import remainder_kernel
from sparsetvm.core.config import Config
from sparsetvm.core.graph import Graph
from sparsetvm.core.layout import Planes
from sparsetvm.core.target import parse_target
from sparsetvm.core.workload import Workload
from sparsetvm.rewrite.assign_layouts import assign_layouts
from sparsetvm.rewrite.canonical import canonicalize
from sparsetvm.rewrite.fuse_channel_affine import fuse_channel_affine
from sparsetvm.rewrite.fuse_epilogues import fuse_epilogues
from sparsetvm.rewrite.gather_channels import gather_channels
from sparsetvm.rewrite.make_layers import make_layers
from sparsetvm.rewrite.prepare import prepare
from sparsetvm.search.candidates import candidates_of

PASSES = (canonicalize, make_layers, fuse_epilogues, fuse_channel_affine, gather_channels)
H200 = parse_target("cuda,sm_90")


def shuffled(b: ModelBuilder, x: str, channels: int, groups: int = 2) -> str:
    """torch's channel_shuffle of images 6 x 6."""
    x = b.op("Reshape", x, b.const(np.array([1, groups, channels // groups, 6, 6])))
    x = b.op("Transpose", x, perm=[0, 2, 1, 3, 4])
    return b.op("Reshape", x, b.const(np.array([1, channels, 6, 6])))


def shuffle_net(blocks: int = 3) -> ModelBuilder:
    """Blocks of ShuffleNet: half of the channels pass, the other half goes through a convolution."""
    b = ModelBuilder(opset=18)
    x = b.conv(b.input("x", (1, 3, 6, 6)), 3, 8)
    for _ in range(blocks):
        kept = b.op("Slice", x, b.const(np.array([0])), b.const(np.array([4])), b.const(np.array([1])))
        other = b.op("Slice", x, b.const(np.array([4])), b.const(np.array([2**60])), b.const(np.array([1])))
        x = shuffled(b, b.op("Concat", kept, b.relu(b.conv(other, 4, 4)), axis=1), 8)
    return b.output(b.conv(x, 8, 4))


def dense_net() -> ModelBuilder:
    """Layers of DenseNet: each reads all results before it, normalised."""
    b = ModelBuilder(opset=18)
    parts = [b.conv(b.input("x", (1, 3, 6, 6)), 3, 4)]
    for layer in range(3):
        x = b.op("Concat", *parts, axis=1) if layer else parts[0]
        parts.append(b.conv(b.relu(b.batch_norm(x, 4 * layer + 4)), 4 * layer + 4, 4))
    return b.output(b.conv(b.op("Concat", *parts, axis=1), 16, 4))


def split(b: ModelBuilder, x: str, *sizes: int) -> list[str]:
    """The pieces of an image, along its channels."""
    outs = [b.fresh("split") for _ in sizes]
    b.nodes.append(helper.make_node("Split", [x, b.const(np.array(sizes))], outs, name=b.fresh("Split"), axis=1))
    return outs


def laid_out(graph: Graph) -> Graph:
    assign_layouts(graph, H200)
    return graph


def default_choice(workload: Workload) -> Config:
    """The first template's default."""
    return candidates_of(workload, H200).choices[0].default


def converts(graph: Graph) -> list[tuple[int, ...]]:
    """Shapes of what is converted."""
    return [graph.values[node.inputs[0]].shape for node in graph.nodes if node.op == "convert"]


def test_blocks_of_shufflenet_copy_no_half_that_passes() -> None:
    graph = rewritten(shuffle_net(), *PASSES)
    assert not {"Concat", "Slice", "Reshape", "Transpose"} & set(ops(graph))
    made = [node for node in graph.nodes if node.op == "gather_channels"]
    # The half that each convolution reads, and what the last one reads.
    assert [len(node.attrs["channels"]) for node in made] == [4, 4, 4, 8]
    assert converts(laid_out(graph)) == [(1, 3, 6, 6), (1, 4, 6, 6)]  # input and output of the model


def test_norms_of_densenet_read_all_parts_themselves() -> None:
    graph = rewritten(dense_net(), *PASSES)
    made = [node for node in graph.nodes if node.op == "gather_channels"]
    assert [len(node.inputs) for node in made] == [2, 3, 4]
    assert [node.attrs["epilogue"].activation if "epilogue" in node.attrs else None for node in made] == [
        *("relu", "relu", None)
    ]
    assert "Concat" not in ops(graph)
    assert converts(laid_out(graph)) == [(1, 3, 6, 6), (1, 4, 6, 6)]
    assert all(isinstance(graph.values[node.outputs[0]].layout, Planes) for node in made)


@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_resized_images_stay_in_planes(mode: str) -> None:
    """As in DeepLabV3: an upsampled image beside the mean of all pixels, which is put in each place."""
    b = ModelBuilder(opset=18)
    image = b.conv(b.input("x", (1, 3, 4, 5)), 3, 4)
    mean = b.relu(b.conv(b.op("GlobalAveragePool", image), 4, 2, 1))
    sizes = [b.const(np.array([1, channels, 8, 10])) for channels in (4, 2)]
    parts = [b.op("Resize", part, "", "", size, mode=mode) for part, size in zip((image, mean), sizes, strict=True)]
    graph = rewritten(
        b.output(b.conv(b.op("Concat", *parts, axis=1), 6, 4)), canonicalize, make_layers, gather_channels
    )
    assert converts(laid_out(graph)) == [(1, 3, 4, 5), (1, 4, 8, 10)]
    kernels = [remainder_kernel(graph, node, H200) for node in graph.nodes if node.op == "Resize"]
    assert [kernel.key[0] if kernel else None for kernel in kernels] == ["resize", "resize"]


@pytest.mark.parametrize("read", ["concat", "parts", "both"])
def test_split_reads_the_parts_of_a_concatenation(read: str) -> None:
    b = ModelBuilder(opset=18)
    x = b.input("x", (2, 3, 6, 6))
    joined = b.op("Concat", b.conv(x, 3, 4), b.conv(x, 3, 5), axis=1)
    first, second = split(b, joined, 2, 7)
    results = {"concat": [joined], "parts": [first, second], "both": [b.relu(joined), second]}[read]
    graph = rewritten(b.output(*results), *PASSES)
    assert "Concat" not in ops(graph)
    assert "Split" not in ops(graph)
    assert ops(graph).count("gather_channels") == len(results)


@pytest.mark.parametrize("case", ["height", "plain", "groups apart", "constant"])
def test_other_moves_stay(case: str) -> None:
    b = ModelBuilder(opset=18)
    x = b.input("x", (1, 8, 6, 6))
    y = x if case == "plain" else b.conv(x, 8, 8)
    if case == "groups apart":
        y = b.op("Reshape", y, b.const(np.array([1, 2, 4, 6, 6])))
        y = b.op("Reshape", b.op("Transpose", y, perm=[0, 2, 1, 4, 3]), b.const(np.array([1, 8, 6, 6])))
    elif case == "constant":
        y = b.op("Concat", y, b.const(np.ones((1, 2, 6, 6), np.float32)), axis=1)
    else:
        y = b.op("Concat", y, x, axis=2 if case == "height" else 1)
        y = b.op("Concat", y, x, axis=1) if case == "plain" else y
    rewritten(b.output(y), canonicalize, make_layers, fuse_epilogues, gather_channels, expect_change=None)


def test_an_image_that_is_whole_is_not_copied() -> None:
    b = ModelBuilder(opset=18)
    x = b.conv(b.input("x", (1, 3, 6, 6)), 3, 4)
    first, second = split(b, b.op("Concat", x, b.conv(x, 4, 4), axis=1), 4, 4)
    pooled = [b.op("MaxPool", part, kernel_shape=[2, 2]) for part in (first, second)]
    graph = rewritten(b.output(*pooled), *PASSES)
    assert sorted(ops(graph)) == ["MaxPool", "MaxPool", "conv2d", "conv2d"]


@pytest.mark.parametrize("build", [lambda: shuffle_net(1), dense_net], ids=["ShuffleNet", "DenseNet"])
def test_networks_compute_what_onnxruntime_computes_in_few_launches(build, tmp_path) -> None:  # type: ignore[no-untyped-def]
    builder = build()
    prepared = prepare(builder.save(tmp_path / "m.onnx"), H200)
    configs = {layer: default_choice(task.workload) for layer, task in prepared.tasks.items()}
    inputs = random_inputs(builder.model())
    found, launches = run_network(prepared.graph, prepared.tasks, configs, H200, inputs)
    (expected,) = run_onnxruntime(builder.model(), inputs).values()
    assert launches == len(prepared.graph.nodes)
    assert relative_error(found[0], expected) < 1e-5
