"""k-winners as exporters write it becomes one node, and nothing else does."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from models import ModelBuilder

from sparsetvm.core.graph import SPARSETVM_DOMAIN, Graph
from sparsetvm.core.target import parse_target
from sparsetvm.frontend.load import load_model
from sparsetvm.rewrite.fuse_k_winners import fuse_k_winners
from sparsetvm.rewrite.pipeline import rewrite
from sparsetvm.rewrite.workloads import make_tasks

K = 5
Write = Callable[[ModelBuilder, str], str]


def top(b: ModelBuilder, x: str, **attrs: object) -> tuple[str, str]:
    values = b.op("TopK", x, b.const(np.array([K])), **attrs)
    b.nodes[-1].output.append(f"{values}.at")
    return values, f"{values}.at"


def zeros(b: ModelBuilder) -> str:
    return b.const(np.zeros((2, 40), np.float32))


def scattered(b: ModelBuilder, x: str) -> str:
    values, at = top(b, x)
    return b.op("ScatterElements", zeros(b), at, values, axis=1)


def scattered_mask(b: ModelBuilder, x: str) -> str:
    _, at = top(b, x)
    return b.op("Mul", b.op("ScatterElements", zeros(b), at, b.const(np.ones((2, K), np.float32)), axis=-1), x)


def sliced(b: ModelBuilder, x: str) -> str:
    kth = b.op("Slice", top(b, x)[0], *(b.const(np.array([i])) for i in (K - 1, K, 1)))
    return b.op("Mul", x, b.op("Cast", b.op("GreaterOrEqual", x, kth), to=1))


def minimum(b: ModelBuilder, x: str) -> str:
    kth = b.op("ReduceMin", top(b, x, sorted=0)[0], axes=[1], keepdims=1)
    return b.op("Where", b.op("LessOrEqual", kth, x), x, b.const(np.float32(0)))


def gathered(b: ModelBuilder, x: str) -> str:
    kth = b.op("Gather", top(b, x)[0], b.const(np.array([-1])), axis=1)
    return b.op("Mul", b.op("Cast", b.op("GreaterOrEqual", x, kth), to=1), x)


WRITTEN = {"scattered": "first", "scattered_mask": "first", "sliced": "all", "minimum": "all", "gathered": "all"}


def loaded(write: Write, tmp_path, *, behind: bool = False) -> Graph:
    b = ModelBuilder("k_winners", seed=0)
    x = b.input("x", (2, 40))
    y = write(b, x)
    b.op("Identity", b.linear(y, 40, 32, sparsity=0.9) if behind else y, out="y")
    return load_model(b.output("y").save(tmp_path / "m.onnx")).graph


@pytest.mark.parametrize("name", WRITTEN)
def test_every_way_becomes_one_node(name: str, tmp_path) -> None:
    graph = loaded(globals()[name], tmp_path)
    assert fuse_k_winners(graph)
    (node,) = [node for node in graph.nodes if node.is_op("k_winners", domain=SPARSETVM_DOMAIN)]
    assert node.attrs == {"k": K, "ties": WRITTEN[name]}
    assert not [node for node in graph.nodes if node.is_op("TopK", "ScatterElements", "Cast", "Where")]
    assert not fuse_k_winners(graph)


def smallest(b: ModelBuilder, x: str) -> str:
    values, at = top(b, x, largest=0)
    return b.op("ScatterElements", zeros(b), at, values, axis=1)


def other_axis(b: ModelBuilder, x: str) -> str:
    values, at = top(b, x)
    return b.op("ScatterElements", zeros(b), at, values, axis=0)


def on_ones(b: ModelBuilder, x: str) -> str:
    values, at = top(b, x)
    return b.op("ScatterElements", b.const(np.ones((2, 40), np.float32)), at, values, axis=1)


def of_something_else(b: ModelBuilder, x: str) -> str:
    kth = b.op("Slice", top(b, b.op("Abs", x))[0], *(b.const(np.array([i])) for i in (K - 1, K, 1)))
    return b.op("Mul", x, b.op("Cast", b.op("GreaterOrEqual", x, kth), to=1))


def larger_than_the_first(b: ModelBuilder, x: str) -> str:
    kth = b.op("Slice", top(b, x)[0], *(b.const(np.array([i])) for i in (0, 1, 1)))
    return b.op("Mul", x, b.op("Cast", b.op("GreaterOrEqual", x, kth), to=1))


@pytest.mark.parametrize("write", [smallest, other_axis, on_ones, of_something_else, larger_than_the_first])
def test_what_only_looks_like_it_stays(write: Write, tmp_path) -> None:
    assert not fuse_k_winners(loaded(write, tmp_path))


def test_layers_behind_know_their_density(tmp_path) -> None:
    target = parse_target("cpu,znver4", 1)
    graph = rewrite(loaded(scattered, tmp_path, behind=True), target)
    (task,) = make_tasks(graph, target).values()
    assert task.workload.activation_density == 1 / 8  # 5 of 40


def test_k_winners_are_fused_for_gpus_too(tmp_path) -> None:
    graph = rewrite(loaded(scattered, tmp_path), parse_target("cuda,sm_90", 1))
    assert [node.op for node in graph.nodes] == ["k_winners"]
