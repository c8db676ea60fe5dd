"""Attention is found however its heads and projections are split, and packed projections become three."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from canonical_checks import find, ops, rewritten
from models import ModelBuilder
from onnx import helper

from sparsetvm.core.graph import Graph
from sparsetvm.core.target import parse_target
from sparsetvm.frontend.load import load_model
from sparsetvm.rewrite.canonical import canonicalize
from sparsetvm.rewrite.fuse_attention import fuse_attention
from sparsetvm.rewrite.fuse_epilogues import fuse_epilogues
from sparsetvm.rewrite.make_layers import make_layers
from sparsetvm.rewrite.move_reshapes import move_reshapes
from sparsetvm.rewrite.split_products import split_products

H200 = parse_target("cuda,sm_90")
HIDDEN, HEADS, DEPTH, SEQ = 24, 3, 8, 5


def fused(graph: Graph) -> bool:
    return fuse_attention(graph, H200)


def reshape(b: ModelBuilder, x: str, *shape: int) -> str:
    return b.op("Reshape", x, b.const(np.array(shape)))


def split(b: ModelBuilder, x: str, parts: int, axis: int) -> list[str]:
    outs = [b.fresh("split") for _ in range(parts)]
    b.nodes.append(helper.make_node("Split", [x], outs, name=b.fresh("Split"), axis=axis, num_outputs=parts))
    return outs


def attended(b: ModelBuilder, q: str, k: str, v: str, *masks: str, scale: float = 0.3) -> str:
    """Of heads (B, heads, S, d), k (B, heads, d, S)."""
    scores = b.op("Mul", b.op("MatMul", q, k), b.const(scale))
    for mask in masks:
        scores = b.op("Add", mask, scores) if mask.endswith("swapped") else b.op("Add", scores, mask)
    return b.op("MatMul", b.op("Softmax", scores, axis=-1), v)


def gpt2(batch: int = 1) -> ModelBuilder:
    """A packed product of rows, split along its features."""
    b = ModelBuilder(opset=18)
    x = reshape(b, b.input("x", (batch, SEQ, HIDDEN)), batch * SEQ, HIDDEN)
    packed = reshape(b, b.gemm(x, HIDDEN, 3 * HIDDEN), batch, SEQ, 3 * HIDDEN)
    q, k, v = (reshape(b, part, batch, SEQ, HEADS, DEPTH) for part in split(b, packed, 3, 2))
    q, v = (b.op("Transpose", part, perm=[0, 2, 1, 3]) for part in (q, v))
    y = attended(b, q, b.op("Transpose", k, perm=[0, 2, 3, 1]), v, b.input("mask", (1, 1, SEQ, SEQ)))
    y = reshape(b, b.op("Transpose", y, perm=[0, 2, 1, 3]), batch * SEQ, HIDDEN)
    return b.output(reshape(b, b.gemm(y, HIDDEN, HIDDEN), batch, SEQ, HIDDEN))


def vit() -> ModelBuilder:
    """torch.nn.MultiheadAttention: tokens first, an axis of three, scales on both operands."""
    b = ModelBuilder(opset=18)
    x = b.op("Transpose", b.input("x", (1, SEQ, HIDDEN)), perm=[1, 0, 2])
    packed = reshape(b, b.linear(x, HIDDEN, 3 * HIDDEN), 1, SEQ, 1, 3, HIDDEN)
    packed = b.op("Squeeze", b.op("Transpose", packed, perm=[3, 1, 2, 0, 4]), b.const(np.array([3])))
    parts = [b.op("Gather", packed, b.const(np.array(at)), axis=0) for at in range(3)]
    heads = [b.op("Transpose", reshape(b, part, SEQ, HEADS, DEPTH), perm=[1, 0, 2]) for part in parts]
    q, k, v = (reshape(b, part, 1, HEADS, SEQ, DEPTH) for part in heads)
    root = b.const(DEPTH**-0.25)
    k = b.op("Mul", b.op("Transpose", k, perm=[0, 1, 3, 2]), root)
    y = attended(b, b.op("Mul", q, root), k, v, scale=1.0)
    y = reshape(b, b.op("Transpose", y, perm=[2, 0, 1, 3]), SEQ, HIDDEN)
    y = reshape(b, b.gemm(y, HIDDEN, HIDDEN), SEQ, 1, HIDDEN)
    return b.output(b.op("Transpose", y, perm=[1, 0, 2]))


def t5(second: str = "mask") -> ModelBuilder:
    """Three products; positions and padding are added one after the other."""
    b = ModelBuilder(opset=18)
    x = b.input("x", (2, 4, HIDDEN))
    heads = [reshape(b, b.linear(x, HIDDEN, HIDDEN), 2, 4, HEADS, DEPTH) for _ in range(3)]
    q, v = (b.op("Transpose", part, perm=[0, 2, 1, 3]) for part in (heads[0], heads[2]))
    k = b.op("Transpose", heads[1], perm=[0, 2, 3, 1])
    positions = b.const(b.rng.standard_normal((1, HEADS, 4, 4)).astype(np.float32))
    y = attended(b, q, k, v, positions, b.input(second, (2, 1, 1, 4)))
    return b.output(b.linear(reshape(b, b.op("Transpose", y, perm=[0, 2, 1, 3]), 2, 4, HIDDEN), HIDDEN, HIDDEN))


@pytest.mark.parametrize(
    ("build", "scale"), [(gpt2, 0.3), (vit, 1 / math.sqrt(DEPTH)), (t5, 0.3), (lambda: t5("mask_swapped"), 0.3)]
)
def test_attention_of_all_exporters_becomes_one_node(build, scale: float) -> None:  # type: ignore[no-untyped-def]
    graph = rewritten(build(), canonicalize, fused)
    node = find(graph, "attention")
    assert node.attrs["heads"] == HEADS
    assert node.attrs["scale"] == pytest.approx(scale)
    assert not {"Softmax", "Transpose", "Split", "Gather"} & set(ops(graph))


@pytest.mark.parametrize("build", [gpt2, vit])
def test_packed_projection_becomes_three_products_without_moves(build) -> None:  # type: ignore[no-untyped-def]
    graph = rewritten(build(), canonicalize, fused, make_layers, move_reshapes, fuse_epilogues, split_products)
    assert ops(graph) == ["matmul", "matmul", "matmul", "attention", "matmul"]
    assert [node.attrs["weight"].shape for node in graph.nodes if node.op == "matmul"] == [(HIDDEN, HIDDEN)] * 4
    assert len({node.name for node in graph.nodes}) == 5


@pytest.mark.parametrize("case", ["heads inside", "other keys", "joined otherwise", "two readers", "tokens"])
def test_other_products_around_a_softmax_stay(case: str) -> None:
    b = ModelBuilder(opset=18)
    x = b.input("x", (2, 4, HIDDEN))
    shape = (2, 4, DEPTH, HEADS) if case == "heads inside" else (2, 4, HEADS, DEPTH)
    perm = [0, 3, 1, 2] if case == "heads inside" else [0, 2, 1, 3]
    if case == "tokens":  # of one image in the place of another
        shape, perm = (4, 2, HEADS, DEPTH), [1, 2, 0, 3]
    q, k, v = (b.op("Transpose", reshape(b, b.linear(x, HIDDEN, HIDDEN), *shape), perm=perm) for _ in range(3))
    if case == "other keys":
        k = b.op("Transpose", reshape(b, b.linear(x, HIDDEN, HIDDEN), 2, HEADS, 4, DEPTH), perm=[0, 1, 2, 3])
    k = b.op("Transpose", k, perm=[0, 1, 3, 2])
    scores = b.op("MatMul", q, k)
    probabilities = b.op("Softmax", scores, axis=-1)
    y = b.op("MatMul", probabilities, v)
    if case == "joined otherwise":
        b.output(reshape(b, y, 2, 4, HIDDEN))
    else:
        b.output(reshape(b, b.op("Transpose", y, perm=[0, 2, 1, 3]), 2, 4, HIDDEN))
    if case == "two readers":
        b.output(probabilities)
    rewritten(b, canonicalize, fused, expect_change=None)
    assert "attention" not in ops(rewritten(b, canonicalize, fused, expect_change=None))


def test_attention_whose_scores_do_not_fit_a_gpu_stays(tmp_path: Path) -> None:
    b = ModelBuilder(opset=18)
    b.output(b.attention(b.input("x", (1, 4096, 8)), 1, 4096, 8, 1))
    graph = load_model(b.save(tmp_path / "m.onnx")).graph
    canonicalize(graph)
    assert not fuse_attention(graph, H200)
    assert fuse_attention(graph, parse_target("cpu,skylake-avx512"))


@pytest.mark.parametrize(
    ("limits", "reader", "products"),
    [
        ((0, 4, 4, 8), "Relu", 2),
        ((0, 5, 4, 8), "Relu", 1),  # they overlap
        ((0, 4, 4, 8), "Transpose", 1),  # they are moved anyway
        ((0, 4, 4, 8), "whole", 1),
    ],
)
def test_products_are_split_where_their_parts_are_read_as_products_are(
    limits: tuple[int, ...], reader: str, products: int
) -> None:
    b = ModelBuilder(opset=18)
    y = b.gemm(b.input("x", (2, 6)), 6, 8)
    cuts = [b.const(np.array([at])) for at in limits]
    parts = [b.op("Slice", y, begin, end, b.const(np.array([1]))) for begin, end in (cuts[:2], cuts[2:])]
    b.output(*(b.op("Relu" if reader == "whole" else reader, part) for part in parts))
    if reader == "whole":
        b.output(y)
    graph = rewritten(b, canonicalize, make_layers, split_products, expect_change=None)
    assert ops(graph).count("matmul") == products


def test_gated_units_get_products_and_activations_of_their_own() -> None:
    b = ModelBuilder(opset=18)
    gate, value = split(b, b.gemm(b.input("x", (2, 6)), 6, 8), 2, -1)
    b.output(b.op("Mul", b.op("Sigmoid", gate), value))
    graph = rewritten(b, canonicalize, make_layers, split_products)
    fuse_epilogues(graph)
    assert ops(graph) == ["matmul", "matmul", "Mul"]
