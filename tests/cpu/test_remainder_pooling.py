"""Pooling against a float64 loop over windows clipped to the image."""

from __future__ import annotations

import numpy as np
import pytest
from remainder_cases import TARGETS, compile_kernel, run_kernel, with_threads
from sparsetvm.schedules.x86.remainder.pooling import Pooling, global_pooling_kernel, pooling_kernel

from sparsetvm.core.layout import PLAIN, Planes
from sparsetvm.core.target import Target
from sparsetvm.core.workload import ConvGeometry

_RANDOM = np.random.default_rng(0)


def _reference(x: np.ndarray, pooling: Pooling) -> np.ndarray:
    w = pooling.window
    out = np.zeros((*x.shape[:2], w.out_height, w.out_width))
    for row in range(w.out_height):
        for column in range(w.out_width):
            pixels = x[:, :, pooling.rows(row)][..., pooling.columns(column)].astype(np.float64)
            if pooling.kind == "max":
                out[..., row, column] = pixels.max((2, 3))
            else:
                count = w.kernel[0] * w.kernel[1] if pooling.include_pad else pixels.shape[2] * pixels.shape[3]
                out[..., row, column] = pixels.sum((2, 3)) / count
    return out


WINDOWS = {
    "3x3_stride2": ConvGeometry(3, 14, 40, (3, 3), (2, 2), (1, 1, 1, 1)),
    "2x2_stride2": ConvGeometry(3, 13, 35, (2, 2), (2, 2)),
    "3x3_stride1_7x7": ConvGeometry(3, 7, 7, (3, 3), (1, 1), (1, 1, 1, 1)),
    "3x2_stride3_uneven_pads": ConvGeometry(3, 11, 20, (3, 2), (3, 3), (0, 1, 2, 0)),
    "2x2_dilation2": ConvGeometry(3, 9, 18, (2, 2), (1, 2), (1, 1, 1, 1), (2, 2)),
    "7x7_stride7": ConvGeometry(3, 14, 37, (7, 7), (7, 7), (3, 3, 3, 3)),
}
KINDS = {"max": ("max", False), "average": ("average", False), "average_with_pads": ("average", True)}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("window", WINDOWS)
def test_pooling_matches_float64_with_clipped_windows(window: str, kind: str, target: Target) -> None:
    pooling = Pooling(KINDS[kind][0], WINDOWS[window], KINDS[kind][1])
    w = pooling.window
    planes_in = Planes(2, 3, w.in_height, w.in_width, 1, target.lanes)
    planes_out = Planes(2, 3, w.out_height, w.out_width, 2, target.lanes)
    # All negative: a zero border taken for a pixel would win the maximum.
    x = -1 - _RANDOM.random((2, 3, w.in_height, w.in_width)).astype(np.float32)
    expected = _reference(x, pooling)
    pairs = [(planes_in, planes_out, 1), (PLAIN, PLAIN, 2)] if "stride2" in window else [(planes_in, planes_out, 2)]
    for source, destination, threads in pairs:
        kernel = pooling_kernel(source, destination, 2, pooling, with_threads(target, threads), "pooling")
        packed = x if source is PLAIN else source.to_physical(x)
        y = run_kernel(compile_kernel(kernel, target), [packed], destination.physical_shape(expected.shape))
        physical = expected if destination is PLAIN else destination.to_physical(expected)
        assert np.abs(y - physical).max() < 1e-6
        assert (y[physical == 0] == 0).all()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", ["max", "average"])
@pytest.mark.parametrize("shape", [(2, 21, 7, 7), (1, 3, 5, 33), (1, 16, 1, 1), (1, 17, 28, 28)])
def test_global_pooling_matches_float64(shape: tuple[int, ...], kind: str, target: Target) -> None:
    x = -1 - _RANDOM.random(shape).astype(np.float32)
    expected = (x.astype(np.float64).max if kind == "max" else x.astype(np.float64).mean)((2, 3), keepdims=True)
    planes = Planes(*shape, 1, target.lanes)
    for layout, packed in ((PLAIN, x), (planes, planes.to_physical(x))):
        kernel = global_pooling_kernel(layout, shape, kind, with_threads(target, 2), "pooling")
        y = run_kernel(compile_kernel(kernel, target), [packed], expected.shape)
        assert np.abs(y - expected).max() < 1e-6
