"""Rotary embeddings: found in an attention, and computed by CUDA's kernel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from canonical_checks import find, ops, rewritten
from cuda_remainder_cases import TARGET, needs_nvcc, nvcc_faults, run_remainder
from models import ModelBuilder
from sparsetvm.schedules.cuda.remainder.rotary import rotary_kernel, rotary_tables

from sparsetvm.core.graph import Graph
from sparsetvm.core.layout import Tiled
from sparsetvm.core.target import parse_target
from sparsetvm.errors import SparseTvmError
from sparsetvm.rewrite.canonical import canonicalize
from sparsetvm.rewrite.fuse_attention import fuse_attention

H200 = parse_target("cuda,sm_90")
BATCH, SEQ, HEADS, DEPTH = 2, 4, 3, 6
HIDDEN = HEADS * DEPTH


def fused(graph: Graph) -> bool:
    return fuse_attention(graph, H200)


def angles(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    turn = np.random.default_rng(1).uniform(0, 6, shape).astype(np.float32)
    return np.cos(turn), np.sin(turn)


def rotated(b: ModelBuilder, x: str, case: str) -> str:
    """Of heads (B, heads, S, d), as Llama's."""
    cosines, sines = angles((1, HEADS if case == "heads differ" else 1, SEQ, DEPTH))
    half, axis = DEPTH // 2, b.const(np.array([3]))
    first = b.op("Slice", x, b.const(np.array([0])), b.const(np.array([half])), axis)
    second = b.op("Slice", x, b.const(np.array([half])), b.const(np.array([2**40])), axis)
    parts = [first, b.op("Neg", second)] if case == "order" else [b.op("Neg", second), first]
    if case == "sign":
        parts = [second, first]
    turned = b.op("Mul", b.op("Concat", *parts, axis=-1), b.const(sines))
    straight = b.op("Mul", x, b.const(cosines))
    return b.op("Add", turned, straight) if case == "swapped" else b.op("Add", straight, turned)


def llama(case: str = "") -> ModelBuilder:
    b = ModelBuilder(opset=18)
    x = b.input("x", (BATCH, SEQ, HIDDEN))
    split = b.const(np.array([BATCH, SEQ, HEADS, DEPTH]))
    heads = [b.op("Reshape", b.linear(x, HIDDEN, HIDDEN), split) for _ in range(3)]
    q, k, v = (b.op("Transpose", part, perm=[0, 2, 1, 3]) for part in heads)
    q, k = rotated(b, q, case), b.op("Transpose", rotated(b, k, case), perm=[0, 1, 3, 2])
    scores = b.op("Mul", b.op("MatMul", q, k), b.const(0.4))
    y = b.op("MatMul", b.op("Softmax", scores, axis=-1), v)
    y = b.op("Reshape", b.op("Transpose", y, perm=[0, 2, 1, 3]), b.const(np.array([BATCH, SEQ, HIDDEN])))
    return b.output(b.linear(y, HIDDEN, HIDDEN))


@pytest.mark.parametrize("case", ["", "swapped"])
def test_queries_and_keys_are_turned_as_tokens(case: str) -> None:
    graph = rewritten(llama(case), canonicalize, fused)
    assert ops(graph).count("rotary") == 2
    assert find(graph, "attention").attrs["heads"] == HEADS
    assert not {"Concat", "Neg", "Slice", "Transpose", "Softmax"} & set(ops(graph))


@pytest.mark.parametrize("case", ["sign", "order", "heads differ"])
def test_other_sums_of_products_are_no_rotary_embeddings(case: str) -> None:
    graph = rewritten(llama(case), canonicalize, fused, expect_change=None)
    assert not {"rotary", "attention"} & set(ops(graph))


@pytest.mark.parametrize("rows", [SEQ * BATCH, SEQ * 1])
def test_rotary_kernel_matches_numpy(rows: int) -> None:
    tiled = Tiled(rows, HIDDEN, -(-rows // 4) * 4)
    x = np.random.default_rng(0).standard_normal((rows // SEQ, SEQ, HEADS, DEPTH)).astype(np.float32)
    cosines, sines = angles((SEQ, DEPTH))
    turned = np.concatenate([-x[..., DEPTH // 2 :], x[..., : DEPTH // 2]], -1).astype(np.float64)
    expected = x * cosines[:, None].astype(np.float64) + turned * sines[:, None]
    given = [tiled.to_physical(x.reshape(rows, HIDDEN)), *rotary_tables(tiled, cosines, sines)]
    y = run_remainder(rotary_kernel(tiled, DEPTH, TARGET, "rotary"), given, tiled.physical_shape(x.shape))
    assert np.abs(tiled.to_logical(y, expected.shape) - expected).max() < 1e-6


def test_rotary_kernel_refuses_several_tiles() -> None:
    with pytest.raises(SparseTvmError, match="one tile"):
        rotary_kernel(Tiled(8, HIDDEN, 4), DEPTH, TARGET, "rotary")


@needs_nvcc
def test_rotary_kernel_compiles_for_sm_90_without_spills(tmp_path: Path) -> None:
    assert nvcc_faults(rotary_kernel(Tiled(64, 256, 64), 64, TARGET, "rotary"), tmp_path) == ""
