"""reveal_blocks orders channels so that layers show the blocks they have, and leaves outputs as they are."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from canonical_checks import rewritten
from models import ModelBuilder
from onnx import numpy_helper

from sparsetvm.analysis.patterns import summarize
from sparsetvm.core.graph import Graph
from sparsetvm.core.target import parse_target
from sparsetvm.rewrite.canonical import canonicalize
from sparsetvm.rewrite.make_layers import make_layers
from sparsetvm.rewrite.prepare import prepare
from sparsetvm.rewrite.reveal_blocks import reveal_blocks

RNG = np.random.default_rng(0)


def blocks(m: int, k: int, size: int = 8, density: float = 0.3, rng: np.random.Generator = RNG) -> np.ndarray:
    """An (m, k) weight of size x size blocks, at least one in each line of blocks."""
    coarse = rng.random((m // size, k // size)) < density
    coarse[np.arange(m // size), np.arange(m // size) % (k // size)] = True
    coarse[np.arange(k // size) % (m // size), np.arange(k // size)] = True
    return (np.kron(coarse, np.ones((size, size))) * rng.uniform(0.5, 1.5, (m, k))).astype(np.float32)


def put(builder: ModelBuilder, weight: np.ndarray, layer: int = -1) -> None:
    """Set the weight of a convolution, Gemm or MatMul, in the order of the nodes, from an (m, k) matrix."""
    node = [node for node in builder.nodes if node.op_type in ("Conv", "Gemm", "MatMul")][layer]
    tensor = next(tensor for tensor in builder.initializers if tensor.name == node.input[1])
    shaped = weight.T if node.op_type == "MatMul" else weight.reshape(tuple(tensor.dims))
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(shaped), tensor.name))


def revealed(builder: ModelBuilder, expect_change: bool = True, device: str = "cuda") -> Graph:
    graph = rewritten(builder, canonicalize, make_layers, partial(reveal_blocks, device=device), expect_change=None)
    said = [note for note in graph.notes if "reordered" in note]
    assert bool(said) == expect_change, graph.notes
    return graph


def patterns(graph: Graph) -> list[str]:
    return [summarize(node.attrs["weight"]).describe() for node in graph.nodes if "weight" in node.attrs]


def shuffled_mlp(order: np.ndarray, *, activation: str = "relu", size: int = 8) -> ModelBuilder:
    """256 -> 256 -> 256 with blocks, the channels in the middle shuffled."""
    b = ModelBuilder("mlp")
    y = b.gemm(b.input("x", (8, 256)), 256, 256)
    put(b, blocks(256, 256, size)[order])
    y = b.linear(getattr(b, activation)(y), 256, 256)
    put(b, blocks(256, 256, size)[:, order])
    return b.output(b.relu(y))


@pytest.mark.parametrize("activation", ["relu", "silu", "gelu"])
def test_rows_of_one_layer_and_columns_of_the_next_are_ordered_together(activation: str) -> None:
    graph = revealed(shuffled_mlp(RNG.permutation(256), activation=activation))
    assert patterns(graph) == ["block 8x8", "block 8x8"]
    assert graph.notes == ["reordered channels: 2 layers show blocks that were hidden"]


def test_blocks_of_different_sizes_nest() -> None:
    order = RNG.permutation(320)
    b = ModelBuilder()
    y = b.relu(b.gemm(b.input("x", (8, 320)), 320, 320))
    put(b, blocks(320, 320, 16)[order])
    b.output(b.relu(b.gemm(y, 320, 320)))
    put(b, blocks(320, 320, 8)[:, order])
    assert patterns(revealed(b)) == ["block 16x16", "block 8x8"]


def test_blocks_at_an_offset_are_aligned() -> None:
    b = ModelBuilder()
    y = b.relu(b.gemm(b.input("x", (8, 256)), 256, 256))
    put(b, np.roll(blocks(256, 256), 5, axis=0))
    b.output(b.gemm(y, 256, 12))
    assert patterns(revealed(b))[0] == "block 8x8"


def test_convolutions_sums_norms_and_depthwise_follow() -> None:
    order, inner = RNG.permutation(160), RNG.permutation(160)
    b = ModelBuilder()
    x = b.relu(b.conv(b.input("x", (1, 160, 6, 6)), 160, 160, 1))
    put(b, blocks(160, 160)[order])
    y = b.relu(b.batch_norm(b.conv(x, 160, 160, 1, bias=False), 160))
    put(b, blocks(160, 160)[inner][:, order])
    y = b.relu6(b.conv(y, 160, 160, groups=160))
    y = b.conv(y, 160, 160, 1)
    put(b, blocks(160, 160)[order][:, inner])
    y = b.op("Mul", b.op("Add", y, x), b.const(b.vector(160).reshape(160, 1, 1)))
    y = b.op("MaxPool", b.relu(y), kernel_shape=[2, 2], strides=[2, 2])
    b.output(b.gemm(b.op("Flatten", y), 160 * 9, 7))
    found = patterns(revealed(b))
    assert found[:2] == ["block 8x8", "block 8x8"]
    assert found.count("block 8x8") == 3


def test_rows_of_a_convolution_with_taps_are_ordered() -> None:
    b = ModelBuilder()
    y = b.relu(b.conv(b.input("x", (1, 16, 6, 6)), 16, 160, 3))
    put(b, blocks(160, 144)[RNG.permutation(160)])
    b.output(b.conv(y, 160, 12, 3))
    assert patterns(revealed(b))[0] == "block 8x8"


def test_layer_that_shows_blocks_keeps_them_when_its_neighbour_is_ordered() -> None:
    """The first layer has blocks of 16 rows; within them the order is free, and the second layer needs another."""
    within = np.concatenate([16 * i + RNG.permutation(16) for i in range(16)])
    b = ModelBuilder()
    y = b.relu(b.gemm(b.input("x", (8, 256)), 256, 256))
    put(b, blocks(256, 256, 16))
    b.output(b.relu(b.gemm(y, 256, 256)))
    put(b, blocks(256, 256, 8)[:, within])
    assert patterns(revealed(b)) == ["block 16x16", "block 8x8"]


@pytest.mark.parametrize(
    "case", ["output", "softmax", "both_sides", "strays", "small", "n_of_m", "unstructured", "twice"]
)
def test_channels_stay_when(case: str) -> None:
    order = RNG.permutation(256)
    b = ModelBuilder()
    y = b.gemm(b.input("x", (8, 256)), 256, 256)
    hidden = blocks(256, 256)[order]
    match case:
        case "output":
            put(b, hidden)
            b.output(b.relu(y))
        case "softmax":
            put(b, hidden)
            b.output(b.gemm(b.op("Softmax", y, axis=-1), 256, 12))
        case "both_sides":  # the model's input cannot be reordered
            put(b, hidden[:, RNG.permutation(256)])
            b.output(b.gemm(b.relu(y), 256, 12))
        case "strays":
            put(b, hidden + (RNG.random(hidden.shape) < 0.02).astype(np.float32))
            b.output(b.gemm(b.relu(y), 256, 12))
        case "small":
            put(b, blocks(256, 256, 4)[order])
            b.output(b.gemm(b.relu(y), 256, 12))
        case "n_of_m":  # the larger layer behind it has a pattern along its columns
            put(b, hidden)
            b.output(b.gemm(b.relu(y), 256, 512))
            kept = RNG.random((512, 64, 4)).argsort(axis=2).argsort(axis=2) < 2
            put(b, (kept.reshape(512, 256) * RNG.uniform(0.5, 1.5, (512, 256))).astype(np.float32))
        case "unstructured":
            put(b, RNG.standard_normal((256, 256)).astype(np.float32) * (RNG.random((256, 256)) < 0.1))
            b.output(b.gemm(b.relu(y), 256, 12))
        case _:  # the layer behind it shows blocks along another order, and is larger
            put(b, hidden)
            b.output(b.gemm(b.relu(y), 256, 512))
            put(b, blocks(512, 256))
    revealed(b, expect_change=False)


@pytest.mark.parametrize("seed", range(12))
def test_random_networks_with_shuffled_channels_keep_their_outputs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    b = ModelBuilder(seed=seed, opset=18)
    x, orders = b.input("x", (1, 160, 4, 4)), {}
    x = b.relu(b.conv(x, 160, 160, 1))
    orders[x] = rng.permutation(160)
    put(b, blocks(160, 160, rng=rng)[orders[x]])
    for kind in rng.choice(["conv", "same", "join", "act", "pool", "scale"], 7):
        order = orders[x]
        if kind in ("conv", "same"):
            y = b.conv(x, 160, 160, 1, bias=bool(rng.integers(2)))
            order = order if kind == "same" else rng.permutation(160)
            put(b, blocks(160, 160, rng=rng)[order][:, orders[x]])
        elif kind == "join":
            y = b.op("Add", x, str(rng.choice([name for name in orders if (orders[name] == order).all()])))
        elif kind == "pool":
            y = b.op("AveragePool", x, kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1])
        elif kind == "scale":
            y = b.op("Mul", b.const(b.vector(160).reshape(160, 1, 1)), x)
        else:
            y = b.op(str(rng.choice(["Relu", "Sigmoid", "Tanh"])), x)
        orders[y] = order
        x = y
    b.gemm(b.op("Flatten", x), 160 * 16, 4)
    graph = revealed(b.output(b.nodes[-1].output[0]))
    assert "block 8x8" in patterns(graph)


def test_targets_look_for_the_blocks_that_their_kernels_take(tmp_path: Path) -> None:
    shuffled = np.random.default_rng(3).permutation(256)
    for size, cpu, gpu in ((8, "block 8x8", "block 8x8"), (4, "block 4x4", "block 1x4")):
        path = shuffled_mlp(shuffled, size=size).save(tmp_path / "net.onnx")
        for target, expected in (("cpu,skylake-avx512", cpu), ("cuda,sm_90", gpu)):
            first = next(iter(prepare(path, parse_target(target, 1)).tasks.values()))
            assert first.workload.pattern.describe() == expected
