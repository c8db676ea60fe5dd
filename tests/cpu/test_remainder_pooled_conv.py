"""Convolution with max pooling in one kernel, against float64; what is huge or not finite stays in its windows."""

from __future__ import annotations

import numpy as np
import pytest
from remainder_cases import TARGETS, compile_kernel, run_kernel, with_threads
from sparsetvm.schedules.x86.remainder.pooled_conv import pack_pooled_conv, pooled_conv_kernel
from test_conv_columns import convolved

from sparsetvm.core.layout import PLAIN, AnyLayout, Planes
from sparsetvm.core.target import Target
from sparsetvm.core.workload import ConvGeometry, Epilogue

CASES = [
    (ConvGeometry(1, 32, 32, (5, 5)), 64, 1, 0),
    (ConvGeometry(3, 11, 24, (3, 3), pads=(1, 1, 1, 1)), 20, 2, 2),
    (ConvGeometry(2, 12, 45, (5, 3), pads=(0, 1, 2, 1)), 33, 1, 1),
    (ConvGeometry(1, 7, 9, (3, 1), pads=(2, 0, 2, 0)), 8, 3, 0),
]


def pooled(y: np.ndarray) -> np.ndarray:
    batch, m, height, width = y.shape
    even = y[:, :, : height // 2 * 2, : width // 2 * 2]
    return even.reshape(batch, m, height // 2, 2, width // 2, 2).max((3, 5))


def run(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, conv: ConvGeometry, e: Epilogue, out: Planes,
    source: AnyLayout, target: Target,
) -> np.ndarray:  # fmt: skip
    kernel = compile_kernel(pooled_conv_kernel(source, out, conv, e, target, "kernel"), target)
    given = source.to_physical(x) if isinstance(source, Planes) else x
    return run_kernel(kernel, [given, *pack_pooled_conv(weight, bias, conv)], out.physical_shape(()))


def case(conv: ConvGeometry, m: int, batch: int, pad: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, Planes]:
    rng = np.random.default_rng(m)
    x = rng.standard_normal((batch, conv.in_channels, conv.in_height, conv.in_width)).astype(np.float32)
    weight = rng.standard_normal((m, conv.in_channels * conv.kernel[0] * conv.kernel[1])).astype(np.float32)
    bias = rng.standard_normal(m).astype(np.float32)
    return x, weight, bias, Planes(batch, m, conv.out_height // 2, conv.out_width // 2, pad, 16)


@pytest.mark.parametrize("target", TARGETS[:1])
@pytest.mark.parametrize("scale", [1.0, 1e25], ids=["by points", "by taps"])
@pytest.mark.parametrize(("conv", "m", "batch", "pad"), CASES)
def test_result_matches_float64(conv: ConvGeometry, m: int, batch: int, pad: int, scale: float, target: Target) -> None:
    x, weight, bias, out = case(conv, m, batch, pad)
    x *= np.float32(scale)
    source = Planes(batch, conv.in_channels, conv.in_height, conv.in_width, 3, 16) if batch == 2 else PLAIN
    e = Epilogue(bias=True, activation="relu")
    got = run(x, weight, bias, conv, e, out, source, with_threads(target, batch))
    want = np.maximum(pooled(convolved(x, weight, conv) + bias[:, None, None]), 0)
    want, got = out.to_physical(want) / scale, got.astype(np.float64) / scale
    assert np.linalg.norm(got - want) <= 1e-6 * np.linalg.norm(want)
    assert not got[want == 0].any()  # borders are zeros


@pytest.mark.parametrize("target", TARGETS[:1])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_what_is_not_finite_or_huge_stays_in_its_windows(value: float, target: Target) -> None:
    conv = ConvGeometry(1, 16, 16, (5, 5))
    x, weight, bias, out = case(conv, 16, 1, 0)
    clean = run(x, weight, bias, conv, Epilogue(bias=True), out, PLAIN, target)
    x[0, 0, 9, 4] = value
    got = run(x, weight, bias, conv, Epilogue(bias=True), out, PLAIN, target)
    far = np.ones((12, 12), bool)
    far[5:10, 0:5] = False
    far = np.repeat(far.reshape(6, 2, 6, 2).all((1, 3))[None, None], 16, axis=1)
    before, after = (out.to_logical(y, (1, 16, 6, 6)) for y in (clean, got))
    np.testing.assert_allclose(after[far], before[far], rtol=1e-4, atol=1e-5)
    with np.errstate(invalid="ignore", over="ignore"):
        windows = np.lib.stride_tricks.sliding_window_view(x[0, 0], (5, 5))
        taps = windows[None] * weight.reshape(16, 1, 1, 5, 5)
        want = pooled(taps.sum((3, 4), dtype=np.float32)[None])
    assert np.array_equal(np.isnan(after), np.isnan(want)) or not np.isnan(value)
