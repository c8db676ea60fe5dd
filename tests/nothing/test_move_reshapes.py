"""Reshapes are moved from between products and what follows them."""

from __future__ import annotations

import numpy as np
import pytest
from canonical_checks import ops, rewritten
from models import ModelBuilder

from sparsetvm.rewrite.canonical import canonicalize
from sparsetvm.rewrite.fuse_epilogues import fuse_epilogues
from sparsetvm.rewrite.make_layers import make_layers
from sparsetvm.rewrite.move_reshapes import move_reshapes

PASSES = (canonicalize, make_layers, move_reshapes)


def reshape(b: ModelBuilder, x: str, *shape: int) -> str:
    return b.op("Reshape", x, b.const(np.array(shape)))


def test_products_of_reshaped_tokens_take_in_all_that_follows() -> None:
    b = ModelBuilder(opset=18)
    x = b.input("x", (2, 3, 8))
    y = reshape(b, b.linear(reshape(b, x, 6, 8), 8, 5), 2, 3, 5)
    y = reshape(b, b.linear(reshape(b, b.relu(y), 6, 5), 5, 8), 2, 3, 8)
    graph = rewritten(b.output(b.op("Add", x, y)), *PASSES)
    assert "Reshape" not in ops(graph)
    fuse_epilogues(graph)
    assert ops(graph) == ["matmul", "matmul"]


def test_squeeze_and_excitation_has_reshapes_at_its_ends_only() -> None:
    b = ModelBuilder(opset=18)
    x = b.input("x", (2, 4, 5, 5))
    gate = b.conv(b.relu(b.conv(b.op("GlobalAveragePool", x), 4, 3, 1)), 3, 4, 1)
    b.output(b.op("Mul", x, b.op("Sigmoid", gate)))
    graph = rewritten(b, *PASSES)
    assert [op for op in ops(graph) if op != "GlobalAveragePool"] == [
        *("Reshape", "matmul", "Relu", "matmul", "Sigmoid", "Reshape", "Mul"),
    ]
    fuse_epilogues(graph)
    assert ops(graph).count("matmul") == 2
    assert not {"Relu", "Sigmoid"} & set(ops(graph))


@pytest.mark.parametrize("case", ["features", "two readers", "no product", "vector"])
def test_other_reshapes_stay(case: str) -> None:
    b = ModelBuilder(opset=18)
    x = b.input("x", (2, 3, 8))
    if case == "features":
        b.output(b.linear(reshape(b, x, 2, 24), 24, 5))
    elif case == "two readers":
        y = reshape(b, b.linear(x, 8, 5), 6, 5)
        b.output(b.op("Relu", y), b.op("Neg", y))
    elif case == "no product":
        b.output(b.op("Relu", reshape(b, b.op("Neg", x), 6, 8)))
    else:
        b.output(b.linear(reshape(b, b.op("ReduceMax", x, b.const(np.array([0, 1])), keepdims=0), 1, 8), 8, 5))
    rewritten(b, *PASSES, expect_change=None)
    graph = rewritten(b, canonicalize, make_layers, expect_change=None)
    assert not move_reshapes(graph)
