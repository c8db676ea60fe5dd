"""Random networks of the operators that the canonical passes touch keep their outputs."""

from __future__ import annotations

import numpy as np
import pytest
from canonical_checks import rewritten
from models import ModelBuilder

from sparsetvm.frontend.names import words
from sparsetvm.rewrite.canonical import canonicalize

CHANNELS, SIZE = 4, 5
STEPS = sorted(
    words(
        """
        conv pointwise pad_conv pool scale shift divide sub_from sum join square bn layer_norm
        relu min max clip silu gelu gelu_tanh transpose reshape
        """
    )
)


def constant(b: ModelBuilder) -> str:
    """A factor or addend, away from zero: a number, one per channel, or one per column."""
    shape = [(), (1,), (CHANNELS, 1, 1), (1, CHANNELS, 1, 1), (SIZE,)][b.rng.integers(5)]
    return b.const((b.rng.uniform(0.5, 1.5, shape) * b.rng.choice([-1, 1], shape)).astype(np.float32))


def step(b: ModelBuilder, x: str, other: str, kind: str) -> str:
    match kind:
        case "conv":
            return b.conv(x, CHANNELS, CHANNELS, 3, bias=bool(b.rng.integers(2)), auto_pad="SAME_UPPER")
        case "pointwise":
            return b.conv(x, CHANNELS, CHANNELS, 1, groups=int(b.rng.choice([1, 2, 4])), sparsity=0.5)
        case "scale":
            return b.op("Mul", *b.rng.permutation([x, constant(b)]))
        case "shift":
            return b.op("Add", *b.rng.permutation([x, constant(b)]))
        case "divide":
            return b.op("Div", x, constant(b))
        case "sub_from":
            return b.op("Sub", *b.rng.permutation([x, constant(b)]))
        case "clip":
            return b.op("Clip", x, b.const(-0.5), b.const(float(b.rng.uniform(0, 2))))
        case "relu":
            return b.relu(x)
        case "min" | "max":
            return b.op(kind.capitalize(), x, b.const(float(b.rng.normal())))
        case "bn":
            return b.batch_norm(x, CHANNELS)
        case "silu" | "gelu" | "gelu_tanh":
            return getattr(b, kind)(x)
        case "sum":
            return b.op("Sum", x, other, constant(b))
        case "join":
            return b.op("Add", x, other)
        case "transpose":
            perm = b.rng.permutation(4)
            return b.op("Transpose", b.op("Transpose", x, perm=perm), perm=np.argsort(perm))
        case "reshape":
            return b.op("Reshape", b.op("Flatten", x, axis=2), b.const([1, CHANNELS, SIZE, SIZE]))
        case "pad_conv":
            padded = b.op("Pad", x, b.const([0, 0, 1, 0, 0, 0, 1, 2]), b.const(float(b.rng.choice([0.0, 0.0, 1.0]))))
            return b.conv(padded, CHANNELS, CHANNELS, 3, pad=0)
        case "pool":
            op = str(b.rng.choice(["MaxPool", "AveragePool"]))
            return b.op(op, x, kernel_shape=[3, 3], strides=[1, 1], auto_pad="SAME_LOWER")
        case "layer_norm":
            return b.layer_norm(x, SIZE, epsilon=1e-2)
        case "square":
            return b.op("Tanh", b.op("Mul", x, x))
    raise ValueError(kind)


@pytest.mark.parametrize("seed", range(80))
def test_canonicalize_preserves_random_networks(seed):
    b = ModelBuilder(seed=seed)
    values = [b.input("x", (1, CHANNELS, SIZE, SIZE))]
    for kind in b.rng.choice(STEPS, 14):
        # Mostly a chain, now and then a value that others have read already.
        x = values[-1] if b.rng.random() < 0.8 else str(b.rng.choice(values))
        values.append(step(b, x, str(b.rng.choice(values)), str(kind)))
    outputs = [values[-1], *(v for v in values[1:-1] if b.rng.random() < 0.1)]
    rewritten(b.output(*outputs), canonicalize, expect_change=None)
