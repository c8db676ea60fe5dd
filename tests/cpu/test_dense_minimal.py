"""Strided first convolutions by minimal filtering, against float64; what is huge or not finite stays in its windows."""

from __future__ import annotations

import numpy as np
import pytest
from remainder_cases import TARGETS, with_threads
from sparsetvm.schedules.base import matching, template
from test_matmul_templates import activate, conv_reference, run

from sparsetvm.core.layout import Planes, PlaneTiles
from sparsetvm.core.pattern import PatternSummary
from sparsetvm.core.target import Target
from sparsetvm.core.workload import ConvGeometry, Epilogue, Workload
from sparsetvm.rewrite.plane_geometry import conv_layouts, required_pad

DENSE = PatternSummary("dense", (1, 1), 1.0, 1.0, 0, "0")
RELU = Epilogue(bias=True, activation="relu")
AVX512 = TARGETS[:1]
_KERNEL = template("x86.dense_minimal")
STEM = ConvGeometry(3, 22, 40, (7, 7), (2, 2), (3, 3, 3, 3))
CASES = [
    (STEM, 8, 1, RELU),
    (ConvGeometry(1, 19, 37, (5, 5), (2, 2), (2, 2, 2, 2)), 7, 2, Epilogue(bias=True, activation="sigmoid")),
    (ConvGeometry(2, 16, 33, (6, 3), (2, 2), (0, 1, 3, 0)), 5, 1, Epilogue()),
    (ConvGeometry(4, 21, 32, (8, 1), (2, 2), (4, 0, 3, 0)), 4, 3, RELU),
    (ConvGeometry(1, 9, 50, (5, 9), (2, 2), (1, 4, 1, 4)), 3, 1, RELU),
]


def workload_of(
    conv: ConvGeometry, m: int, batch: int, epilogue: Epilogue, threads: int = 1, tiled: bool = False
) -> Workload:
    lin, planes = conv_layouts(conv, batch, m, required_pad(conv), 16)
    lout = PlaneTiles(batch, m, planes.height, planes.width, planes.pad, 16) if tiled else planes
    k, n = conv.in_channels * conv.kernel[0] * conv.kernel[1], batch * conv.out_height * conv.out_width
    return Workload("conv2d", m, k, n, lin, lout, epilogue, DENSE, conv, threads=threads)


def operands(conv: ConvGeometry, m: int, batch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(m)
    x = rng.standard_normal((batch, conv.in_channels, conv.in_height, conv.in_width)).astype(np.float32)
    weight = rng.standard_normal((m, conv.in_channels, *conv.kernel)).astype(np.float32)
    return x, weight, rng.standard_normal(m).astype(np.float32)


def computed(
    workload: Workload, target: Target, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, **knobs: int
) -> np.ndarray:
    """The images that a config computes; everything around them must be zero."""
    lin, lout, conv = workload.layout_in, workload.layout_out, workload.conv
    assert isinstance(lin, Planes)
    assert isinstance(lout, Planes)
    assert conv is not None
    assert _KERNEL.matches(workload, target)
    config = _KERNEL.default(workload, target).replace(**knobs)
    got = run(_KERNEL, workload, config, target, weight.reshape(len(weight), -1), bias, lin.to_physical(x), None)
    images = lout.to_logical(got, (len(x), len(weight), conv.out_height, conv.out_width))
    np.testing.assert_array_equal(got, lout.to_physical(images))
    return images


@pytest.mark.parametrize("target", AVX512)
@pytest.mark.parametrize("scale", [1.0, 1e25], ids=["by points", "by taps"])
@pytest.mark.parametrize(("conv", "m", "batch", "epilogue"), CASES)
def test_result_matches_float64(
    conv: ConvGeometry, m: int, batch: int, epilogue: Epilogue, scale: float, target: Target
) -> None:
    x, weight, bias = operands(conv, m, batch)
    x, bias = x * np.float32(scale), bias * np.float32(scale)
    if not epilogue.bias:
        bias = np.zeros_like(bias)
    with np.errstate(over="ignore"):
        want = activate(conv_reference(x, weight, conv) + bias[:, None, None], epilogue)
    got = computed(workload_of(conv, m, batch, epilogue), target, x, weight, bias if epilogue.bias else None)
    assert np.linalg.norm(got - want) < 2e-6 * np.linalg.norm(want)


@pytest.mark.parametrize("target", AVX512)
@pytest.mark.parametrize("filters", [2, 3, 4])
def test_numbers_of_filters_and_threads_match_float64(filters: int, target: Target) -> None:
    x, weight, bias = operands(STEM, 9, 2)
    want = activate(conv_reference(x, weight, STEM) + bias[:, None, None], RELU)
    got = computed(workload_of(STEM, 9, 2, RELU, 3), with_threads(target, 3), x, weight, bias, filters=filters)
    assert np.linalg.norm(got - want) < 2e-6 * np.linalg.norm(want)


@pytest.mark.parametrize("target", AVX512)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_what_is_not_finite_or_huge_stays_in_its_windows(value: float, target: Target) -> None:
    x, weight, bias = operands(STEM, 8, 1)
    workload = workload_of(STEM, 8, 1, Epilogue(bias=True))
    before = computed(workload, target, x, weight, bias)
    x[0, 1, 10, 17] = value
    after = computed(workload, target, x, weight, bias)
    reached = np.zeros((11, 20), bool)
    # Rows 10 = 2 y - 3 + ky and columns 17 = 2 x - 3 + kx of the windows.
    reached[4:7, 7:11] = True
    assert np.abs(after - before)[..., ~reached].max() < 1e-4
    assert not np.isclose(after[0][:, reached], before[0][:, reached]).any()
    assert np.isfinite(after[..., ~reached]).all()


@pytest.mark.parametrize("target", AVX512)
@pytest.mark.parametrize("value", [1e12, np.inf, np.nan])
def test_weights_that_would_overflow_are_multiplied_by_taps(value: float, target: Target) -> None:
    x, weight, bias = operands(STEM, 4, 1)
    weight[2, 0, 3, 3] = value
    with np.errstate(invalid="ignore"):
        want = conv_reference(x, weight, STEM) + bias[:, None, None]
    got = computed(workload_of(STEM, 4, 1, Epilogue(bias=True)), target, x, weight, bias)
    others = [0, 1, 3]
    assert np.linalg.norm(got[:, others] - want[:, others]) < 2e-6 * np.linalg.norm(want[:, others])
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))


def test_it_is_the_default_of_a_strided_first_convolution_only() -> None:
    target = Target("cpu", "znver4", "avx512")

    def first(conv: ConvGeometry) -> str:
        workload = workload_of(conv, 64, 1, RELU)
        return next(t.name for t in matching(workload, target) if t.dense)

    assert first(ConvGeometry(3, 224, 224, (7, 7), (2, 2), (3, 3, 3, 3))) == _KERNEL.name
    assert first(ConvGeometry(16, 224, 224, (7, 7), (2, 2), (3, 3, 3, 3))) != _KERNEL.name
    assert first(ConvGeometry(3, 224, 224, (3, 3), (2, 2), (1, 1, 1, 1))) != _KERNEL.name
