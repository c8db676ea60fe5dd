"""Depthwise convolution against a float64 loop over taps."""

from __future__ import annotations

import numpy as np
import pytest
from remainder_cases import TARGETS, compile_kernel, run_kernel, with_threads
from sparsetvm.schedules.x86.remainder.depthwise import depthwise_kernel, pack_depthwise

from sparsetvm.core.layout import Planes
from sparsetvm.core.target import Target
from sparsetvm.core.workload import ConvGeometry, Epilogue
from sparsetvm.errors import SparseTvmError
from sparsetvm.rewrite.plane_geometry import depthwise_pad

_RANDOM = np.random.default_rng(0)


def _reference(x: np.ndarray, weight: np.ndarray, conv: ConvGeometry) -> np.ndarray:
    top, left, bottom, right = conv.pads
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (top, bottom), (left, right)))
    (sy, sx), (dy, dx) = conv.stride, conv.dilation
    out = np.zeros((*x.shape[:2], conv.out_height, conv.out_width))
    for ky in range(conv.kernel[0]):
        for kx in range(conv.kernel[1]):
            rows = slice(ky * dy, ky * dy + sy * (conv.out_height - 1) + 1, sy)
            cols = slice(kx * dx, kx * dx + sx * (conv.out_width - 1) + 1, sx)
            out += padded[:, :, rows, cols] * weight[:, ky, kx][:, None, None]
    return out


def _geometry(size: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int], **more: object) -> ConvGeometry:
    return ConvGeometry(3, *size, kernel, stride, groups=3, **more)


CASES = {
    "3x3_7x7": _geometry((7, 7), (3, 3), (1, 1), pads=(1, 1, 1, 1)),
    "3x3_5x13": _geometry((5, 13), (3, 3), (1, 1), pads=(1, 1, 1, 1)),
    "3x3_9x40": _geometry((9, 40), (3, 3), (1, 1), pads=(1, 1, 1, 1)),
    "3x3_stride2_18x64": _geometry((18, 64), (3, 3), (2, 2), pads=(1, 1, 1, 1)),
    "3x3_stride2_17x67": _geometry((17, 67), (3, 3), (2, 2), pads=(1, 1, 1, 1)),
    "3x3_stride2_7x7": _geometry((7, 7), (3, 3), (2, 2), pads=(0, 0, 1, 1)),
    "3x3_stride2_14x15": _geometry((14, 15), (3, 3), (2, 2), pads=(0, 1, 1, 0)),
    "5x5_stride2_13x70": _geometry((13, 70), (5, 5), (2, 2), pads=(2, 2, 2, 2)),
    "5x5_stride12": _geometry((11, 33), (5, 5), (1, 2), pads=(2, 2, 2, 2)),
    "3x3_stride21": _geometry((12, 33), (3, 3), (2, 1), pads=(1, 1, 1, 1)),
    "3x3_dilation2": _geometry((9, 17), (3, 3), (1, 1), pads=(2, 2, 2, 2), dilation=(2, 2)),
    "3x3_stride2_dilation2": _geometry((19, 45), (3, 3), (2, 2), pads=(2, 2, 2, 2), dilation=(2, 2)),
    "3x3_dilation9": _geometry((19, 45), (3, 3), (1, 1), pads=(9, 9, 9, 9), dilation=(9, 9)),
    "7x7": _geometry((14, 14), (7, 7), (1, 1), pads=(3, 3, 3, 3)),
    "2x3_without_pads": _geometry((6, 19), (2, 3), (1, 1)),
    "1x1_stride3": _geometry((10, 10), (1, 1), (3, 3)),
    "3x4_stride4": _geometry((13, 79), (3, 4), (4, 4), pads=(1, 1, 1, 1)),
    "3x3_stride5": _geometry((13, 79), (3, 3), (5, 5), pads=(0, 1, 2, 0)),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("other_pad", [False, True])
def test_depthwise_matches_float64(case: str, other_pad: bool, target: Target) -> None:
    conv = CASES[case]
    pad = depthwise_pad(conv)
    source = Planes(2, 3, conv.in_height, conv.in_width, pad, target.lanes)
    # With the same stride of rows the plane may be walked by positions.
    out_pad = pad + 3 if other_pad else max(0, source.row_stride - conv.out_width)
    destination = Planes(2, 3, conv.out_height, conv.out_width, out_pad, target.lanes)
    x = _RANDOM.standard_normal((2, 3, conv.in_height, conv.in_width)).astype(np.float32)
    weight = _RANDOM.standard_normal((3, *conv.kernel)).astype(np.float32)
    bias = _RANDOM.standard_normal(3).astype(np.float32)
    residual = _RANDOM.standard_normal((2, 3, conv.out_height, conv.out_width)).astype(np.float32)
    # Neither activation maps zero to zero: borders have to be kept.
    epilogue = Epilogue(True, other_pad, "sigmoid") if other_pad else Epilogue(True, other_pad, "clip", 0.5, 6.0)
    threads = with_threads(target, 2 if other_pad else 1)
    kernel = compile_kernel(depthwise_kernel(source, destination, conv, epilogue, threads, "depthwise"), target)
    inputs = [source.to_physical(x), *([destination.to_physical(residual)] if other_pad else [])]
    y = run_kernel(kernel, [*inputs, *pack_depthwise(weight, bias)], destination.physical_shape(x.shape))
    total = _reference(x, weight, conv) + bias[:, None, None] + (residual if other_pad else 0.0)
    expected = destination.to_physical(1 / (1 + np.exp(-total)) if other_pad else np.clip(total, 0.5, 6.0))
    assert np.abs(y - expected).max() < 1e-5
    assert (y[expected == 0] == 0).all()


def test_depthwise_refuses_planes_whose_pads_do_not_cover_the_taps() -> None:
    conv = CASES["7x7"]
    planes = Planes(1, 3, 14, 14, 1, 16)
    with pytest.raises(SparseTvmError, match="cannot read"):
        depthwise_kernel(planes, planes, conv, Epilogue(), TARGETS[0].values[0], "depthwise")


def test_depthwise_refuses_planes_split_into_phases() -> None:
    conv = CASES["3x3_stride2_7x7"]
    source, out = Planes(1, 3, 4, 4, 1, 16, (2, 2)), Planes(1, 3, 4, 4, 1, 16)
    with pytest.raises(SparseTvmError, match="phases"):
        depthwise_kernel(source, out, conv, Epilogue(), TARGETS[0].values[0], "depthwise")
