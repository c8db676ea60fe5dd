"""Networks with k-winners, and what k-winners kernels are compared with."""

from __future__ import annotations

import numpy as np
from models import ModelBuilder


def winners(x: np.ndarray, k: int, ties: str) -> np.ndarray:
    """The k largest values of each row, else zero. NaN is the largest; a stable sort keeps the lowest index first."""
    order = np.argsort(np.where(np.isnan(x), -np.inf, -x), axis=-1, kind="stable")
    kept = np.zeros(x.shape, bool)
    np.put_along_axis(kept, order[..., :k], True, axis=-1)
    if ties == "all":
        kth = np.take_along_axis(x, order[..., k - 1 : k], axis=-1)
        kept = np.isnan(x) | (x >= kth)
    return np.where(kept, x, np.float32(0))


def k_winners(b: ModelBuilder, x: str, n: int, k: int) -> str:
    values = b.op("TopK", x, b.const(np.array([k])), axis=1)
    b.nodes[-1].output.append(f"{values}.at")
    return b.op("ScatterElements", b.const(np.zeros((1, n), np.float32)), f"{values}.at", values, axis=1)


def network() -> ModelBuilder:
    """A convolution, winners of all its pixels, a sparse hidden layer with winners, and a classifier."""
    b = ModelBuilder("winners", seed=5)
    x = b.op("MaxPool", b.conv(b.input("x", (1, 1, 12, 12)), 1, 8), kernel_shape=[2, 2], strides=[2, 2])
    flat = b.op("Reshape", x, b.const(np.array([1, 288])))
    hidden = b.linear(k_winners(b, flat, 288, 30), 288, 200, sparsity=0.9)
    b.op("Identity", b.linear(k_winners(b, hidden, 200, 20), 200, 70, sparsity=0.8), out="y")
    return b.output("y")


def inputs() -> dict[str, np.ndarray]:
    normal = np.random.default_rng(0).standard_normal((1, 1, 12, 12)).astype(np.float32)
    return {
        "random": normal,
        "empty": np.zeros_like(normal),
        "equal": np.ones_like(normal),
        "large": 1e30 * normal,
        "subnormal": 1e-40 * normal,
        "one pixel": np.where(np.arange(144).reshape(normal.shape) == 77, normal, 0),
    }
