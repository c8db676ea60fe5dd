"""CUDA kernels of images (depthwise convolution, pools) and element-wise ones against numpy in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cuda_remainder_cases import TARGET, needs_nvcc, nvcc_faults, run_remainder
from sparsetvm.schedules.cuda.remainder.depthwise import depthwise_kernel, pack_depthwise
from sparsetvm.schedules.cuda.remainder.elementwise import (
    binary_kernel,
    scale_channels_kernel,
    unary_kernel,
)
from sparsetvm.schedules.cuda.remainder.pooling import Pooling, global_pooling_kernel, pooling_kernel

from sparsetvm.core.layout import PLAIN, Planes, Tiled
from sparsetvm.core.target import Target
from sparsetvm.core.workload import ConvGeometry, Epilogue
from sparsetvm.errors import SparseTvmError
from sparsetvm.rewrite.plane_geometry import depthwise_pad

_RANDOM = np.random.default_rng(0)
# So few multiprocessors that threads take several outputs.
SMALL = Target("cuda", "x86-64-v3", "sm_90", sms=0, shared=227 << 10)


def _normal(*shape: int) -> np.ndarray:
    return _RANDOM.standard_normal(shape).astype(np.float32)


def _windows(x: np.ndarray, conv: ConvGeometry, outside: float) -> np.ndarray:
    """(kh * kw, batch, channels, out_height, out_width): what every tap of a window reads."""
    top, left, bottom, right = conv.pads
    pads = ((0, 0), (0, 0), (top, bottom), (left, right))
    padded = np.pad(x.astype(np.float64), pads, constant_values=outside)
    (sy, sx), (dy, dx) = conv.stride, conv.dilation
    rows = [slice(ky * dy, ky * dy + sy * (conv.out_height - 1) + 1, sy) for ky in range(conv.kernel[0])]
    columns = [slice(kx * dx, kx * dx + sx * (conv.out_width - 1) + 1, sx) for kx in range(conv.kernel[1])]
    return np.stack([padded[..., row, column] for row in rows for column in columns])


def _geometry(
    size: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int] = (1, 1), **more: object
) -> ConvGeometry:
    return ConvGeometry(3, *size, kernel, stride, groups=3, **more)  # type: ignore[arg-type]


DEPTHWISE = {
    "3x3_8x7": _geometry((8, 7), (3, 3), pads=(1, 1, 1, 1)),
    "3x3_stride2_18x33": _geometry((18, 33), (3, 3), (2, 2), pads=(1, 1, 1, 1)),
    "5x5_stride12": _geometry((11, 13), (5, 5), (1, 2), pads=(2, 2, 2, 2)),
    "3x3_dilation2": _geometry((9, 17), (3, 3), pads=(2, 2, 2, 2), dilation=(2, 2)),
    "2x3_without_pads": _geometry((6, 19), (2, 3)),
}


@pytest.mark.parametrize("name", DEPTHWISE)
@pytest.mark.parametrize("target", [TARGET, SMALL], ids=["one", "several"])
def test_depthwise_matches_float64(name: str, target: Target) -> None:
    conv, other = DEPTHWISE[name], target is SMALL
    source = Planes(2, 3, conv.in_height, conv.in_width, depthwise_pad(conv), 4)
    destination = Planes(2, 3, conv.out_height, conv.out_width, 3 if other else 1, 4)
    x, weight, bias = _normal(2, 3, conv.in_height, conv.in_width), _normal(3, *conv.kernel), _normal(3)
    residual = _normal(2, 3, conv.out_height, conv.out_width)
    epilogue = Epilogue(True, other, "sigmoid") if other else Epilogue(True, other, "clip", 0.5, 6.0)
    launch = depthwise_kernel(source, destination, conv, epilogue, target, "depthwise")
    inputs = [source.to_physical(x), *([destination.to_physical(residual)] if other else [])]
    y = run_remainder(launch, [*inputs, *pack_depthwise(weight, bias)], destination.physical_shape(x.shape))
    taps = weight.reshape(3, -1).T[:, None, :, None, None]
    total = (_windows(x, conv, 0.0) * taps).sum(0) + bias[:, None, None] + (residual if other else 0.0)
    expected = destination.to_physical(1 / (1 + np.exp(-total)) if other else np.clip(total, 0.5, 6.0))
    assert np.abs(y - expected).max() < 1e-5


def test_depthwise_refuses_planes_without_padding() -> None:
    with pytest.raises(SparseTvmError, match="depthwise"):
        depthwise_kernel(
            Planes(1, 3, 8, 7, 0, 4), Planes(1, 3, 8, 7, 1, 4), DEPTHWISE["3x3_8x7"], Epilogue(), TARGET, "d"
        )


POOLS = [
    Pooling("max", ConvGeometry(3, 11, 13, (3, 3), (2, 2), (1, 1, 1, 1))),
    Pooling("average", ConvGeometry(3, 9, 8, (2, 3), (2, 1), (0, 1, 1, 0))),
    Pooling("average", ConvGeometry(3, 9, 8, (3, 3), (1, 1), (1, 1, 1, 1)), include_pad=True),
]


@pytest.mark.parametrize("pooling", POOLS, ids=lambda pooling: f"{pooling.kind}-{pooling.include_pad}")
@pytest.mark.parametrize("plain", [False, True])
def test_pooling_matches_numpy(pooling: Pooling, plain: bool) -> None:
    w = pooling.window
    x = _normal(2, 3, w.in_height, w.in_width)
    source = PLAIN if plain else Planes(2, 3, w.in_height, w.in_width, 1, 4)
    destination = PLAIN if plain else Planes(2, 3, w.out_height, w.out_width, 2, 4)
    shape = (2, 3, w.out_height, w.out_width)
    launch = pooling_kernel(source, destination, 2, pooling, TARGET, "pool")
    y = run_remainder(launch, [x if plain else source.to_physical(x)], destination.physical_shape(shape))
    if pooling.kind == "max":
        expected = _windows(x, w, -np.inf).max(0)
    else:
        share = _windows(np.ones_like(x), w, 1.0 if pooling.include_pad else 0.0).sum(0)
        expected = _windows(x, w, 0.0).sum(0) / share
    assert np.abs(y - (expected if plain else destination.to_physical(expected))).max() < 1e-5


@pytest.mark.parametrize("kind", ["max", "average"])
@pytest.mark.parametrize("size", [(7, 7), (23, 29)])
def test_global_pooling_matches_numpy(kind: str, size: tuple[int, int]) -> None:
    x = _normal(2, 5, *size)
    for source in (PLAIN, Planes(2, 5, *size, 1, 4)):
        launch = global_pooling_kernel(source, x.shape, kind, TARGET, "pool")  # type: ignore[arg-type]
        y = run_remainder(launch, [x if source == PLAIN else source.to_physical(x)], (2, 5, 1, 1))
        expected = x.max((2, 3)) if kind == "max" else x.astype(np.float64).mean((2, 3))
        assert np.abs(y[..., 0, 0] - expected).max() < 1e-6


@pytest.mark.parametrize(
    "layout", [PLAIN, Planes(2, 3, 5, 7, 2, 4), Tiled(30, 7, 32)], ids=lambda at: type(at).__name__
)
def test_elementwise_matches_numpy(layout: object) -> None:
    shape = (2, 15, 7) if isinstance(layout, Tiled) else (2, 3, 5, 7)
    x, other = _normal(*shape), _normal(*shape)
    given = [array if layout == PLAIN else layout.to_physical(array) for array in (x, other)]  # type: ignore[attr-defined]
    physical = layout.physical_shape(shape)  # type: ignore[attr-defined]

    def logical(y: np.ndarray) -> np.ndarray:
        if layout == PLAIN:
            return y
        values = layout.to_logical(y, shape)  # type: ignore[attr-defined]
        assert isinstance(layout, Tiled) or np.array_equal(y, layout.to_physical(values))  # type: ignore[attr-defined]
        return values

    relu = binary_kernel("add", layout, shape, Epilogue(activation="relu"), TARGET, "add")
    assert np.array_equal(logical(run_remainder(relu, given, physical)), np.maximum(x + other, 0))
    product = binary_kernel("mul", layout, shape, Epilogue(), TARGET, "mul")
    assert np.array_equal(logical(run_remainder(product, given, physical)), x * other)
    sigmoid = unary_kernel(layout, shape, Epilogue(activation="sigmoid"), TARGET, "sigmoid")
    assert np.abs(logical(run_remainder(sigmoid, given[:1], physical)) - 1 / (1 + np.exp(-x))).max() < 1e-6


@pytest.mark.parametrize("pad", [0, 2])
def test_scale_channels_scales_images_and_leaves_zeros_around_them(pad: int) -> None:
    shape = (2, 3, 5, 7)
    planes, x = Planes(*shape, pad, 4), _normal(*shape)
    factors = np.array([1.5, -2.0, np.inf, 0.0, np.nan, 3.0], np.float32).reshape(2, 3, 1, 1)
    launch = scale_channels_kernel(planes, shape, TARGET, "scale")
    y = run_remainder(launch, [planes.to_physical(x), factors], planes.physical_shape(shape))
    np.testing.assert_array_equal(y, planes.to_physical(x * factors))


@needs_nvcc
def test_image_kernels_compile_for_sm_90_without_spills(tmp_path: Path) -> None:
    planes = Planes(2, 3, 8, 7, 1, 4)
    launches = [
        depthwise_kernel(
            planes, planes, DEPTHWISE["3x3_8x7"], Epilogue(True, True, "clip", 0.0, 6.0), SMALL, "depthwise"
        ),
        pooling_kernel(Planes(2, 3, 11, 13, 1, 4), Planes(2, 3, 6, 7, 1, 4), 2, POOLS[0], TARGET, "pool"),
        global_pooling_kernel(planes, (2, 3, 8, 7), "average", TARGET, "pool"),
        binary_kernel("add", PLAIN, (5,), Epilogue(activation="gelu"), TARGET, "add"),
        unary_kernel(planes, (2, 3, 8, 7), Epilogue(activation="sigmoid"), TARGET, "sigmoid"),
        unary_kernel(planes, (2, 3, 8, 7), Epilogue(activation="hard_swish"), TARGET, "hard_swish"),
        scale_channels_kernel(planes, (2, 3, 8, 7), TARGET, "scale"),
    ]
    assert [fault for fault in (nvcc_faults(launch, tmp_path) for launch in launches) if fault] == []
