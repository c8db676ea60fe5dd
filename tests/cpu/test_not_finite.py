"""NaN and infinity: what docs/conformance.md promises."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from end_to_end import compile_default, run_library
from models import ModelBuilder, run_onnxruntime

from sparsetvm.core.target import cpu_flags

pytestmark = pytest.mark.skipif("avx2" not in cpu_flags(), reason="needs AVX2")
INF, NAN = np.inf, np.nan


def compiled(builder: ModelBuilder, folder: Path, x: np.ndarray) -> np.ndarray:
    return run_library(compile_default(builder, folder), {"x": x})["y"]


def assert_equal_with_nan(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("tokens", [1, 16])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_zero_weight_is_not_multiplied(tokens: int, value: float, tmp_path: Path) -> None:
    """What is not finite reaches the outputs whose weights for it are not zero, and no other."""
    b = ModelBuilder("skip", seed=3)
    b.op("Identity", b.gemm(b.input("x", (tokens, 40)), 40, 48, sparsity=0.9), out="y")
    weight = np.frombuffer(b.initializers[0].raw_data, np.float32).reshape(48, 40)
    x = np.random.default_rng(0).standard_normal((tokens, 40)).astype(np.float32)
    reached = np.flatnonzero(weight[:, 7])
    assert 0 < reached.size < 48
    x[0, 7] = value
    found = compiled(b.output("y"), tmp_path, x)
    finite = np.isfinite(found)
    assert finite[1:].all()
    assert np.array_equal(np.flatnonzero(~finite[0]), reached)
    clean = x.copy()
    clean[0, 7] = 0
    expected = run_onnxruntime(b.model(), {"x": clean})["y"]
    np.testing.assert_allclose(found[finite], expected[finite], rtol=1e-5, atol=1e-5)


def plain(b: ModelBuilder, x: str) -> str:
    return b.linear(x, 20, 20)


FOLLOWERS: dict[str, Callable[[ModelBuilder, str], str]] = {
    "relu": lambda b, x: b.relu(x),
    "clip": lambda b, x: b.relu6(x),
    "sigmoid": lambda b, x: b.op("Sigmoid", x),
    "silu": lambda b, x: b.silu(x),
    "hard_swish": lambda b, x: b.hard_swish(x),
    "gelu": lambda b, x: b.gelu(x),
    "gelu_tanh": lambda b, x: b.gelu_tanh(x),
    "tanh": lambda b, x: b.op("Tanh", x),
    "residual": lambda b, x: b.op("Add", x, b.input("r", (9, 20))),
}


@pytest.mark.parametrize("name", FOLLOWERS)
def test_nan_passes_through_what_follows_a_layer(name: str, tmp_path: Path) -> None:
    b = ModelBuilder(name, seed=1)
    b.op("Identity", FOLLOWERS[name](b, plain(b, b.input("x", (9, 20)))), out="y")
    inputs = {"x": np.random.default_rng(0).standard_normal((9, 20)).astype(np.float32)}
    if name == "residual":
        inputs["r"] = np.zeros((9, 20), np.float32)
        inputs["r"][2, 3] = NAN
    inputs["x"][4] = NAN
    found = run_library(compile_default(b.output("y"), tmp_path), inputs)["y"]
    expected = np.zeros((9, 20), bool)
    expected[4] = True
    expected[2, 3] = name == "residual"
    assert np.array_equal(np.isnan(found), expected)


@pytest.mark.parametrize("op", ["Relu", "Sigmoid", "Tanh", "Exp", "Sqrt", "Abs", "Neg", "Erf", "Floor", "Softplus"])
def test_functions_of_their_own_agree_with_onnxruntime(op: str, tmp_path: Path) -> None:
    b = ModelBuilder(op, seed=1)
    b.op(op, b.input("x", (2, 9)), out="y")
    x = np.array([[NAN, INF, -INF, 0.0, -0.0, 1.0, -1.0, 80.0, -80.0]] * 2, np.float32)
    found, expected = compiled(b.output("y"), tmp_path, x), run_onnxruntime(b.model(), {"x": x})["y"]
    assert_equal_with_nan(found, expected)


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool"])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_pools_of_what_is_not_finite(op: str, value: float, tmp_path: Path) -> None:
    """NaN is the maximum of a window that holds one, as numpy has it; infinities are what they are."""
    b = ModelBuilder(op, seed=1)
    window = {} if op.startswith("Global") else {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
    b.op(op, b.input("x", (1, 3, 9, 9)), out="y", **window)
    x = np.random.default_rng(0).standard_normal((1, 3, 9, 9)).astype(np.float32)
    x[0, 1, 4, 5] = value
    x[0, 2] = value
    found = compiled(b.output("y"), tmp_path, x)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-INF if "Max" in op else 0)
    if op.startswith("Global"):
        expected = x.max((2, 3), keepdims=True) if "Max" in op else x.mean((2, 3), keepdims=True)
    else:
        views = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::2, ::2]
        inside = np.lib.stride_tricks.sliding_window_view(np.pad(np.ones((9, 9)), 1), (3, 3))[::2, ::2].sum((2, 3))
        expected = views.max((4, 5)) if "Max" in op else views.sum((4, 5)) / inside
    assert_equal_with_nan(found, expected)


@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMin"])
def test_extremes_of_infinities_alone_are_infinite(op: str, tmp_path: Path) -> None:
    """TVM's reductions start from the largest finite number."""
    b = ModelBuilder(op, opset=13)
    b.op(op, b.input("x", (4, 3)), out="y", axes=[1], keepdims=0)
    x = np.array([[-INF] * 3, [INF] * 3, [1, NAN, 2], [NAN, 5, -INF]], np.float32)
    found = compiled(b.output("y"), tmp_path, x)
    assert_equal_with_nan(found, (np.max if op == "ReduceMax" else np.min)(x, axis=1))


def test_softmax_of_a_masked_row_is_nan_as_in_dense(tmp_path: Path) -> None:
    b = ModelBuilder("masked")
    b.op("Softmax", b.input("x", (3, 5)), out="y", axis=-1)
    x = np.array([[-INF] * 5, [-INF, 0, 1, 2, -INF], [0, 0, NAN, 0, 0]], np.float32)
    assert_equal_with_nan(compiled(b.output("y"), tmp_path, x), run_onnxruntime(b.model(), {"x": x})["y"])
