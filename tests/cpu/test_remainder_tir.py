"""The vector functions and lane shuffles that all x86 kernels share, against numpy float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
from remainder_cases import TARGETS, compile_kernel, run_kernel
from sparsetvm.schedules.x86 import tir

from sparsetvm.core.target import Target

REFERENCE = {
    "none": lambda x: x,
    "relu": lambda x: np.where(np.isnan(x), x, np.maximum(x, 0)),
    "clip": lambda x: np.where(np.isnan(x), x, np.clip(x, 0.0, 6.0)),
    "gelu": lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "sigmoid": lambda x: np.where(x < 0, np.exp(np.minimum(x, 0)), 1) / (1 + np.exp(-np.abs(x))),
    "silu": lambda x: x * REFERENCE["sigmoid"](x),
    "hard_swish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "tanh": np.tanh,
}


def _map_kernel(size: int, target: Target, function: str) -> object:
    """Y[i] = function(X[i]), size a multiple of the lanes."""
    lanes = target.lanes
    with tir.prim_func("kernel") as builder:
        x, y = tir.flat_args(X=(size,), Y=(size,))
        with tir.outer(size // lanes, 1) as i:
            value = tir.let(tir.vload(x, i * lanes, lanes))
            if function == "exp":
                result = tir.exp_vec(value, lanes)
            elif function == "reduce":
                result = tir.reduce_lanes(value, lanes, lambda a, b: a + b)
            else:
                result = tir.activated(value, function, 0.0, 6.0, lanes)
            tir.vstore(y, result, i * lanes, lanes)
    return builder.get()


def _points() -> np.ndarray:
    dense = np.linspace(-12, 12, 40000)
    wide = np.concatenate([s * np.logspace(-30, 38, 2000) for s in (-1, 1)])
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan])
    points = np.concatenate([dense, wide, special]).astype(np.float32)
    return np.resize(points, -(-len(points) // 16) * 16)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", sorted(REFERENCE))
def test_activate_is_within_1e6_of_float64(name: str, target: Target) -> None:
    x = _points()
    y = run_kernel(compile_kernel(_map_kernel(len(x), target, name), target), [x], x.shape).astype(np.float64)
    with np.errstate(all="ignore"):
        expected = REFERENCE[name](x.astype(np.float64))
    # In the reference 0 * inf, which hard swish is by its definition: it is not clamped.
    expected[np.isneginf(x)] = {"none": -np.inf, "tanh": -1.0, "hard_swish": np.nan}.get(name, 0.0)
    assert np.array_equal(np.isnan(y), np.isnan(expected))
    finite = np.isfinite(expected)
    assert np.array_equal(y[~finite & ~np.isnan(y)], expected[~finite & ~np.isnan(y)])
    error = np.abs(y[finite] - expected[finite]) / np.maximum(1.0, np.abs(expected[finite]))
    assert error.max() < 1e-6


@pytest.mark.parametrize("target", TARGETS)
def test_exp_is_within_1e6_relative(target: Target) -> None:
    x = np.linspace(-87, 88, 16000).astype(np.float32)
    y = run_kernel(compile_kernel(_map_kernel(len(x), target, "exp"), target), [x], x.shape)
    expected = np.exp(x.astype(np.float64))
    assert (np.abs(y - expected) / expected).max() < 1e-6


@pytest.mark.parametrize("target", TARGETS)
def test_reduce_lanes_gives_the_total_in_every_lane(target: Target) -> None:
    x = np.arange(32, dtype=np.float32)
    y = run_kernel(compile_kernel(_map_kernel(len(x), target, "reduce"), target), [x], x.shape)
    assert np.array_equal(
        y.reshape(-1, target.lanes), np.repeat(x.reshape(-1, target.lanes).sum(1)[:, None], target.lanes, 1)
    )


@pytest.mark.parametrize("target", TARGETS)
def test_transpose_and_reduce_each_match_numpy(target: Target) -> None:
    lanes = target.lanes
    with tir.prim_func("kernel") as builder:
        x, y = tir.flat_args(X=(lanes, lanes), Y=(lanes + 1, lanes))
        rows = [tir.vload(x, i * lanes, lanes) for i in range(lanes)]
        for i, row in enumerate(tir.transpose(rows, lanes)):
            tir.vstore(y, row, i * lanes, lanes)
        tir.vstore(y, tir.reduce_each(rows, lanes, lambda a, b: a + b), lanes * lanes, lanes)
    x = np.arange(lanes * lanes, dtype=np.float32).reshape(lanes, lanes)
    y = run_kernel(compile_kernel(builder.get(), target), [x], (lanes + 1, lanes))
    assert np.array_equal(y[:lanes], x.T)
    assert np.array_equal(y[lanes], x.sum(1))


@pytest.mark.parametrize("target", TARGETS)
def test_vload_lanes_touches_nothing_else(target: Target) -> None:
    lanes = target.lanes
    with tir.prim_func("kernel") as builder:
        x, y = tir.flat_args(X=(lanes,), Y=(2, lanes))
        tir.vstore(y, tir.vload_lanes(x, 0, lanes, 2, 5, fill=-1.0), 0, lanes)
        tir.vstore_lanes(y, tir.vload(x, 0, lanes), lanes, lanes, 1, lanes)
    x = np.arange(lanes, dtype=np.float32)
    y = run_kernel(compile_kernel(builder.get(), target), [x], (2, lanes), fill=7.0)
    assert np.array_equal(y[0], np.where((x >= 2) & (x < 5), x, -1))
    assert np.array_equal(y[1], np.where(x >= 1, x, 7))
