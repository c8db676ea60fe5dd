"""remove_dead_channels makes networks with dead filters smaller and leaves their outputs as they are."""

from __future__ import annotations

import itertools

import pytest
from canonical_checks import find, rewritten
from dead_filters import dead_conv_net, dead_depthwise_net, dead_mlp, dead_residual_net, kill
from models import ModelBuilder

from sparsetvm.core.graph import Graph, Node
from sparsetvm.rewrite.canonical import canonicalize
from sparsetvm.rewrite.make_layers import make_layers
from sparsetvm.rewrite.remove_dead_channels import remove_dead_channels


def removed(builder: ModelBuilder) -> Graph:
    return rewritten(builder, canonicalize, make_layers, remove_dead_channels)


def left_alone(builder: ModelBuilder) -> None:
    """Nothing is removed; canonical form and layers may still change the graph before."""
    before = {n.name: n.attrs["weight"].shape for n in layers(rewritten(builder, canonicalize, make_layers))}
    graph = rewritten(builder, canonicalize, make_layers, remove_dead_channels)
    assert {n.name: n.attrs["weight"].shape for n in layers(graph)} == before
    assert graph.notes == []


def layers(graph: Graph) -> list[Node]:
    return [node for node in graph.nodes if "weight" in node.attrs]


def shapes(graph: Graph) -> list[tuple[int, ...]]:
    return [node.attrs["weight"].shape for node in layers(graph)]


def test_conv_net_loses_its_dead_filters() -> None:
    graph = removed(dead_conv_net())
    assert shapes(graph) == [(14, 27), (14, 126), (14, 14), (5, 14)]
    assert graph.notes == ["removed 18 dead channels of 3 layers"]
    assert [node.attrs["conv"].in_channels for node in layers(graph)[:3]] == [3, 14, 14]


def test_residual_net_loses_what_is_dead_in_both_branches() -> None:
    graph = removed(dead_residual_net())
    assert sorted(shapes(graph)) == sorted([(14, 27), (14, 126), (14, 126), (5, 14)])


def test_depthwise_convolution_shrinks_along() -> None:
    graph = removed(dead_depthwise_net())
    assert shapes(graph) == [(14, 27), (14, 9), (14, 14), (5, 14)]
    conv = find(graph, "depthwise_conv2d").attrs["conv"]
    assert (conv.in_channels, conv.groups) == (14, 14)


@pytest.mark.parametrize("activation", ["relu", "relu6", "silu", "gelu"])
@pytest.mark.parametrize("layer", ["gemm", "linear"])
def test_mlp_folds_what_dead_units_give_into_biases(activation: str, layer: str) -> None:
    graph = removed(dead_mlp(activation=activation, layer=layer))
    assert shapes(graph) == [(14, 12), (14, 14), (5, 14)]


@pytest.mark.parametrize("bias", [False, True])
def test_layer_without_bias_gets_one_only_for_constants_that_are_not_zero(bias: bool) -> None:
    b = ModelBuilder()
    y = b.relu(b.gemm(b.input("x", (3, 6)), 6, 8, bias=bias))
    kill(b, [0, 4])
    graph = removed(b.output(b.gemm(y, 8, 4, bias=False)))
    last = layers(graph)[-1]
    assert (last.attrs["bias"] is not None) == last.attrs["epilogue"].bias == bias


def test_filters_that_nobody_reads_go_and_what_only_they_read_too() -> None:
    b = ModelBuilder()
    y = b.relu(b.conv(b.input("x", (1, 3, 6, 6)), 3, 8))
    z = b.relu(b.conv(y, 8, 8))
    # The second layer's channel 1 is all that reads the first one's channel 6, and nobody reads it.
    b.output(b.conv(z, 8, 4))
    kill(b, [1], layer=2, columns=True)
    kill(b, [6], layer=1, columns=True, rows=[0, 2, 3, 4, 5, 6, 7])
    assert shapes(removed(b)) == [(7, 27), (7, 63), (4, 63)]


def test_flattened_channels_keep_their_pixels_together() -> None:
    b = ModelBuilder()
    y = b.op("MaxPool", b.relu(b.conv(b.input("x", (2, 3, 6, 6)), 3, 8)), kernel_shape=[2, 2], strides=[2, 2])
    kill(b, [0, 3, 7])
    b.output(b.gemm(b.op("Reshape", y, b.const([0, -1])), 72, 4))
    assert shapes(removed(b)) == [(5, 27), (4, 45)]


def test_constant_goes_through_pool_scale_and_transpose() -> None:
    b = ModelBuilder()
    y = b.op("AveragePool", b.relu(b.conv(b.input("x", (1, 3, 6, 6)), 3, 8)), kernel_shape=[3, 3], pads=[1] * 4)
    kill(b, [2, 5])
    y = b.op("Mul", b.op("Tanh", y), b.const(b.vector(8).reshape(1, 8, 1, 1)))
    y = b.op("Transpose", b.op("Reshape", y, b.const([1, 8, 36])), perm=[0, 2, 1])
    b.output(b.linear(b.op("Add", y, b.const(b.vector(8))), 8, 4))
    assert shapes(removed(b)) == [(6, 27), (4, 6)]


def test_squeeze_and_excitation_shrinks_with_the_planes_it_scales() -> None:
    b = ModelBuilder()
    y = b.relu(b.conv(b.input("x", (1, 3, 6, 6)), 3, 8))
    kill(b, [2, 5], bias=0.0)
    gate = b.relu(b.conv(b.op("GlobalAveragePool", y), 8, 4, 1))
    gate = b.op("Sigmoid", b.conv(gate, 4, 8, 1))
    b.output(b.conv(b.op("Mul", y, gate), 8, 4))
    assert shapes(removed(b)) == [(6, 27), (4, 6), (6, 4), (4, 54)]


def test_names_and_origins_of_layers_stay() -> None:
    before = rewritten(dead_residual_net(), canonicalize, make_layers)
    after = removed(dead_residual_net())
    assert [(n.name, n.origin) for n in after.nodes] == [(n.name, n.origin) for n in before.nodes]


def test_two_channels_stay_when_all_are_dead() -> None:
    b = ModelBuilder()
    y = b.relu(b.gemm(b.input("x", (3, 6)), 6, 8))
    kill(b, list(range(8)))
    assert shapes(removed(b.output(b.gemm(y, 8, 4)))) == [(2, 6), (4, 2)]


def test_padding_keeps_a_constant_that_is_not_zero() -> None:
    left_alone(_two_convolutions(bias=0.7))


@pytest.mark.parametrize(("bias", "pad"), [(0.0, 1), (-0.7, 1), (0.7, 0)])
def test_zero_constant_or_no_padding_lets_a_channel_go(bias: float, pad: int) -> None:
    assert shapes(removed(_two_convolutions(bias=bias, pad=pad))) == [(6, 27), (4, 54)]


def _two_convolutions(*, bias: float, pad: int = 1) -> ModelBuilder:
    b = ModelBuilder()
    y = b.relu(b.conv(b.input("x", (1, 3, 6, 6)), 3, 8))
    kill(b, [1, 4], bias=bias)
    return b.output(b.conv(y, 8, 4, pad=pad))


def test_padding_of_a_depthwise_convolution_keeps_a_constant_that_is_not_zero() -> None:
    b = ModelBuilder()
    y = b.conv(b.relu(b.conv(b.input("x", (1, 3, 6, 6)), 3, 8)), 8, 8, groups=8)
    kill(b, [1, 4], layer=0, bias=0.7)
    left_alone(b.output(b.conv(y, 8, 4, 1)))


@pytest.mark.parametrize("case", ["output", "grouped", "concat", "one_branch", "pool_with_pads", "heads", "softmax"])
def test_dead_filters_stay_when(case: str) -> None:
    b = ModelBuilder()
    x = b.input("x", (1, 3, 6, 6))
    y = b.relu(b.conv(x, 3, 8))
    kill(b, [1, 4], bias=0.7 if case == "pool_with_pads" else 0.0)
    match case:
        case "output":
            b.output(y, b.conv(y, 8, 4))
        case "grouped":
            b.output(b.conv(y, 8, 8, groups=2))
        case "concat":
            b.output(b.conv(b.op("Concat", y, x, axis=1), 11, 4))
        case "one_branch":
            b.output(b.conv(b.op("Add", y, b.conv(x, 3, 8)), 8, 4))
        case "pool_with_pads":
            pads = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}
            b.output(b.conv(b.op("AveragePool", y, **pads), 8, 4, 1))
        case "heads":
            b.output(b.conv(b.op("Reshape", y, b.const([1, 4, 12, 6])), 4, 4))
        case "softmax":
            b.output(b.conv(b.op("Softmax", y, axis=1), 8, 4))
    left_alone(b)


@pytest.mark.parametrize("seed", range(40))
def test_random_networks_with_random_dead_filters_keep_their_outputs(seed: int) -> None:
    b = ModelBuilder(seed=seed, opset=18)
    values = [b.conv(b.input("x", (2, 3, 6, 6)), 3, 6)]
    for kind in b.rng.choice(["conv", "pointwise", "depthwise", "grouped", "join", "scale", "pool", "act"], 9):
        x, other = str(b.rng.choice(values[-2:])), str(b.rng.choice(values))
        match kind:
            case "conv" | "pointwise":
                y = b.conv(x, 6, 6, 3 if kind == "conv" else 1, bias=bool(b.rng.integers(2)))
            case "depthwise" | "grouped":
                y = b.conv(x, 6, 6, 3, groups=6 if kind == "depthwise" else 2)
            case "join":
                y = b.op(str(b.rng.choice(["Add", "Mul", "Sub", "Max"])), x, other)
            case "scale":
                y = b.op(str(b.rng.choice(["Add", "Mul"])), b.const(b.vector(6).reshape(6, 1, 1)), x)
            case "pool":
                op = str(b.rng.choice(["MaxPool", "AveragePool"]))
                y = b.op(op, x, kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1])
            case _:
                y = b.op(str(b.rng.choice(["Relu", "Sigmoid", "Tanh", "HardSwish", "LeakyRelu", "Elu"])), x)
        values.append(y)
    b.gemm(b.op("Flatten", values[-1]), 6 * 36, 4)
    for layer in itertools.count():
        if not kill(b, list(b.rng.choice(6, 3, replace=False)), layer=layer, columns=bool(b.rng.integers(2))):
            break
    rewritten(b.output(b.nodes[-1].output[0]), canonicalize, make_layers, remove_dead_channels)
