"""Factors and addends of channels that no layer took in become one operator."""

from __future__ import annotations

import numpy as np
import pytest
from canonical_checks import find, ops, rewritten
from models import ModelBuilder

from sparsetvm.rewrite.canonical import canonicalize
from sparsetvm.rewrite.fuse_channel_affine import fuse_channel_affine

CHANNELS = np.array([0.5, -1.0, 2.0], np.float32)


def image(b: ModelBuilder) -> str:
    return b.op("MaxPool", b.input("x", (2, 3, 5, 4)), kernel_shape=[1, 1])


@pytest.mark.parametrize("shape", [(3, 1, 1), (1, 3, 1, 1), ()])
@pytest.mark.parametrize("form", ["mul", "add", "mul_add", "add_mul", "mul_add_relu", "batch_norm_relu"])
def test_chain_becomes_one_operator(form: str, shape: tuple[int, ...]) -> None:
    b = ModelBuilder(opset=13)
    x = image(b)
    constant = b.const(CHANNELS.reshape(shape) if shape else CHANNELS[0])
    if form == "batch_norm_relu":
        x = b.relu(b.batch_norm(x, 3))
    else:
        for op in form.split("_"):
            x = b.relu(x) if op == "relu" else b.op(op.capitalize(), constant, x)
    graph = rewritten(b.output(x), canonicalize, fuse_channel_affine)
    assert [op for op in ops(graph) if op != "MaxPool"] == ["affine_channels"]
    activation = find(graph, "affine_channels").attrs["epilogue"].activation
    assert activation == ("relu" if form.endswith("relu") else "none")


@pytest.mark.parametrize("case", ["per_column", "per_pixel", "tokens", "grows", "two_readers"])
def test_other_arithmetic_stays(case: str) -> None:
    b = ModelBuilder(opset=13)
    x = b.op("Relu", b.input("x", (2, 3, 4))) if case == "tokens" else image(b)
    shape = {"per_column": (4,), "per_pixel": (3, 5, 4), "grows": (2, 1, 1, 1, 1), "tokens": (1,)}.get(case, (3, 1, 1))
    y = b.op("Mul", x, b.const(np.full(shape, 0.5, np.float32)))
    if case == "two_readers":
        graph = rewritten(b.output(y, b.op("Add", y, b.const(1.0))), fuse_channel_affine)
        assert ops(graph).count("affine_channels") == 2
    else:
        rewritten(b.output(y), fuse_channel_affine, expect_change=False)
