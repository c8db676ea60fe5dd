"""Elementwise kernels, softmax and layer normalisation against numpy float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
from remainder_cases import TARGETS, compile_kernel, run_kernel, with_threads
from sparsetvm.schedules.x86.remainder.concat import concat_kernel
from sparsetvm.schedules.x86.remainder.elementwise import (
    affine_channels_kernel,
    binary_kernel,
    scale_channels_kernel,
    unary_kernel,
)
from sparsetvm.schedules.x86.remainder.layer_norm import layer_norm_kernel
from sparsetvm.schedules.x86.remainder.softmax import softmax_kernel

from sparsetvm.core.layout import PLAIN, Planes, Tiled
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Epilogue

_RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("op", ["add", "mul"])
@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 3, 7, 50), (5000,)])
def test_binary_matches_numpy_on_plain(shape: tuple[int, ...], op: str, target: Target) -> None:
    a, b = (_RANDOM.standard_normal(shape).astype(np.float32) for _ in range(2))
    kernel = binary_kernel(op, PLAIN, shape, Epilogue(activation="relu"), with_threads(target, 2), "kernel")
    y = run_kernel(compile_kernel(kernel, target), [a, b], shape)
    assert np.array_equal(y, np.maximum(a + b if op == "add" else a * b, 0))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("activation", ["none", "clip", "sigmoid"])
def test_binary_keeps_the_borders_of_planes_zero(activation: str, target: Target) -> None:
    planes, shape = Planes(2, 3, 5, 13, 2, target.lanes), (2, 3, 5, 13)
    a, b = (_RANDOM.standard_normal(shape).astype(np.float32) for _ in range(2))
    epilogue = Epilogue(activation=activation, low=0.5, high=6.0)
    kernel = compile_kernel(binary_kernel("add", planes, shape, epilogue, target, "kernel"), target)
    y = run_kernel(kernel, [planes.to_physical(a), planes.to_physical(b)], planes.physical_shape(shape))
    total = a.astype(np.float64) + b
    expected = {"none": total, "clip": np.clip(total, 0.5, 6.0), "sigmoid": 1 / (1 + np.exp(-total))}[activation]
    physical = planes.to_physical(expected)
    assert np.abs(y - physical).max() < 1e-6
    assert (y[physical == 0] == 0).all()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("width", "pad"), [(1, 0), (5, 1), (13, 3), (16, 0), (33, 1)])
def test_scale_channels_scales_images_and_leaves_zeros_around_them(width: int, pad: int, target: Target) -> None:
    shape = (2, 3, 5, width)
    planes = Planes(*shape, pad, target.lanes)
    x = _RANDOM.standard_normal(shape).astype(np.float32)
    factors = np.array([1.5, -2.0, np.inf, 0.0, np.nan, 3.0], np.float32).reshape(2, 3, 1, 1)
    kernel = compile_kernel(scale_channels_kernel(planes, shape, with_threads(target, 2), "kernel"), target)
    y = run_kernel(kernel, [planes.to_physical(x), factors], planes.physical_shape(shape))
    np.testing.assert_array_equal(y, planes.to_physical(x * factors))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("in_planes", [True, False])
@pytest.mark.parametrize("width", [1, 13, 300])
def test_affine_channels_matches_numpy(width: int, in_planes: bool, target: Target) -> None:
    shape = (2, 3, 5, width)
    layout = Planes(*shape, 2, target.lanes) if in_planes else PLAIN
    x = _RANDOM.standard_normal(shape).astype(np.float32)
    scale, shift = (_RANDOM.standard_normal(3).astype(np.float32) for _ in range(2))
    epilogue = Epilogue(activation="relu")
    kernel = affine_channels_kernel(layout, shape, epilogue, with_threads(target, 2), "kernel")
    physical = layout.to_physical if isinstance(layout, Planes) else np.asarray
    y = run_kernel(compile_kernel(kernel, target), [physical(x), scale, shift], layout.physical_shape(shape))
    expected = np.maximum(x * scale[:, None, None].astype(np.float64) + shift[:, None, None], 0)
    np.testing.assert_allclose(y, physical(expected), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("target", TARGETS)
def test_concat_of_planes_is_that_of_their_images(target: Target) -> None:
    images = [_RANDOM.standard_normal((2, channels, 5, 13)).astype(np.float32) for channels in (3, 1, 40)]
    parts = [Planes(*image.shape, 2, target.lanes) for image in images]
    out = Planes(2, 44, 5, 13, 2, target.lanes)
    kernel = compile_kernel(concat_kernel(parts, out, with_threads(target, 2), "kernel"), target)
    physical = [part.to_physical(image) for part, image in zip(parts, images, strict=True)]
    y = run_kernel(kernel, physical, out.physical_shape(()))
    np.testing.assert_array_equal(y, out.to_physical(np.concatenate(images, axis=1)))


@pytest.mark.parametrize("target", TARGETS)
def test_unary_matches_numpy_on_tiles(target: Target) -> None:
    tiled, shape = Tiled(20, 30, target.lanes), (20, 30)
    x = _RANDOM.standard_normal(shape).astype(np.float32)
    kernel = compile_kernel(unary_kernel(tiled, shape, Epilogue(activation="silu"), target, "kernel"), target)
    y = tiled.to_logical(run_kernel(kernel, [tiled.to_physical(x)], tiled.physical_shape(shape)), shape)
    assert np.abs(y - x / (1 + np.exp(-x.astype(np.float64)))).max() < 1e-6


def _softmax(x: np.ndarray) -> np.ndarray:
    terms = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
    return terms / terms.sum(-1, keepdims=True)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("n", [1, 2, 7, 8, 15, 16, 17, 33, 128, 1000])
def test_softmax_matches_float64(n: int, target: Target) -> None:
    x = (5 * _RANDOM.standard_normal((2, 3, n))).astype(np.float32)
    x[0, 0, : n // 2] = -np.inf  # as a mask would
    x[0, 1] += 1e4
    kernel = softmax_kernel(x.shape, with_threads(target, 1 + n % 2), "kernel")
    y = run_kernel(compile_kernel(kernel, target), [x], x.shape)
    assert np.abs(y - _softmax(x)).max() < 1e-6
    assert np.abs(y.sum(-1) - 1).max() < 1e-5


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("rows", "n"), [(1, 1), (5, 7), (33, 16), (3, 40), (18, 300)])
def test_layer_norm_matches_float64_on_both_layouts(rows: int, n: int, target: Target) -> None:
    # A mean of 50 would ruin a variance computed as E[x^2] - E[x]^2.
    x = (50 + _RANDOM.standard_normal((rows, n))).astype(np.float32)
    gamma, beta = (_RANDOM.standard_normal(n).astype(np.float32) for _ in range(2))
    wide = x.astype(np.float64)
    deviation = wide - wide.mean(1, keepdims=True)
    expected = deviation / np.sqrt((deviation**2).mean(1, keepdims=True) + 1e-5) * gamma + beta
    tiled = Tiled(rows, n, target.lanes)
    plain_kernel = layer_norm_kernel(PLAIN, x.shape, 1e-5, with_threads(target, 2), "kernel")
    y = run_kernel(compile_kernel(plain_kernel, target), [x, gamma, beta], x.shape)
    assert np.abs(y - expected).max() < 3e-5
    tiled_kernel = layer_norm_kernel(tiled, x.shape, 1e-5, with_threads(target, 2), "kernel")
    packed = [tiled.to_physical(x), gamma, beta]
    y = tiled.to_logical(run_kernel(compile_kernel(tiled_kernel, target), packed, tiled.physical_shape(())), x.shape)
    assert np.abs(y - expected).max() < 3e-5
    assert math.isfinite(float(y.sum()))
