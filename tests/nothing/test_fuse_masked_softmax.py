"""Scales and masks before a softmax become part of it, and what is computed stays the same."""

from __future__ import annotations

import numpy as np
import pytest
from canonical_checks import find, ops, rewritten
from models import ModelBuilder

from sparsetvm.rewrite.fuse_masked_softmax import fuse_masked_softmax


def _product(b: ModelBuilder) -> str:
    """Scores (2, 3, 5, 7)."""
    return b.op("MatMul", b.input("q", (2, 3, 5, 4)), b.input("k", (2, 3, 4, 7)))


def _mask(b: ModelBuilder, *shape: int) -> str:
    return b.const(np.arange(np.prod(shape), dtype=np.float32).reshape(shape) / 9.0)


@pytest.mark.parametrize("division", [False, True])
@pytest.mark.parametrize("mask", [(7,), (1, 1, 5, 7), (2, 1, 1, 7), (2, 3, 5, 7)], ids=str)
@pytest.mark.parametrize("first", [False, True])
def test_scale_and_mask_fuse(mask: tuple[int, ...], division: bool, first: bool) -> None:
    b = ModelBuilder()
    scores = _product(b)
    scaled = b.op("Div", scores, b.const(4.0)) if division else b.op("Mul", b.const(0.25), scores)
    added = _mask(b, *mask)
    y = b.op("Softmax", b.op("Add", *((added, scaled) if first else (scaled, added))), axis=-1)
    graph = rewritten(b.output(y), fuse_masked_softmax)
    assert ops(graph) == ["MatMul", "masked_softmax"]
    assert find(graph, "masked_softmax").attrs == {"scale": 0.25}


def test_scales_of_both_factors_fuse() -> None:
    b = ModelBuilder()
    q = b.op("Mul", b.input("q", (2, 5, 4)), b.const(0.5))
    k = b.op("Div", b.input("k", (2, 4, 7)), b.const(4.0))
    graph = rewritten(b.output(b.op("Softmax", b.op("MatMul", q, k), axis=-1)), fuse_masked_softmax)
    assert ops(graph) == ["MatMul", "masked_softmax"]
    assert find(graph, "masked_softmax").attrs == {"scale": 0.125}


def test_computed_mask_fuses() -> None:
    b = ModelBuilder()
    mask = b.op("Neg", b.input("mask", (2, 1, 1, 7)))
    graph = rewritten(b.output(b.op("Softmax", b.op("Add", _product(b), mask), axis=3)), fuse_masked_softmax)
    assert sorted(ops(graph)) == ["MatMul", "Neg", "masked_softmax"]


@pytest.mark.parametrize("kind", ["alone", "another axis", "per query", "negative", "read twice", "wider"])
def test_others_stay(kind: str) -> None:
    b = ModelBuilder()
    scores = _product(b)
    if kind == "per query":
        scores = b.op("Add", scores, _mask(b, 5, 1))
    if kind == "wider":  # the mask makes the scores larger
        scores = b.op("Add", b.op("ReduceMax", scores, axes=[0]), _mask(b, 2, 3, 5, 7))
    if kind in ("another axis", "read twice"):
        scores = b.op("Mul", scores, b.const(0.25))
    if kind == "negative":
        scores = b.op("Mul", scores, b.const(-0.25))
    y = b.op("Softmax", scores, axis=1 if kind == "another axis" else -1)
    rewritten(b.output(y, *([scores] if kind == "read twice" else [])), fuse_masked_softmax, expect_change=False)
