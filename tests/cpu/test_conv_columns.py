"""The convolution of sparse activations: right for every input, whatever density it was chosen for."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import scipy.signal
from sparsetvm.schedules.base import matching, template
from test_matmul_templates import AVX512, configs, run

from sparsetvm.analysis.patterns import summarize
from sparsetvm.core.target import Target, cpu_flags
from sparsetvm.core.workload import ConvGeometry, Epilogue, Workload
from sparsetvm.rewrite.plane_geometry import conv_layouts, required_pad

pytestmark = pytest.mark.skipif("avx512f" not in cpu_flags(), reason="no AVX-512 here")
COLUMNS = template("x86.conv_columns")


def random_weight(m: int, k: int, density: float, block: int) -> np.ndarray:
    rng = np.random.default_rng(m)
    keep = np.kron(rng.random((m // block, k)) < density, np.ones((block, 1)))
    return (rng.standard_normal((m, k)) * keep).astype(np.float32)


def workload_for(weight: np.ndarray, conv: ConvGeometry, batch: int, epilogue: Epilogue, block: int) -> Workload:
    source, out = conv_layouts(conv, batch, len(weight), required_pad(conv), 16)
    pattern = msgspec.structs.replace(summarize(weight), kind="block", block=(block, 1))
    n = batch * conv.out_height * conv.out_width
    return Workload(
        "conv2d", *weight.shape, n, source, out, epilogue, pattern, conv, activation_density=1 / 8
    )  # fmt: skip


def convolved(x: np.ndarray, weight: np.ndarray, conv: ConvGeometry) -> np.ndarray:
    """(batch, m, out_height, out_width) in float64."""
    (top, left, bottom, right), (dy, dx) = conv.pads, conv.dilation
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (top, bottom), (left, right)))
    taps = weight.reshape(-1, conv.in_channels, *conv.kernel).astype(np.float64)
    wide = np.zeros((*taps.shape[:2], *(d * (k - 1) + 1 for d, k in zip(conv.dilation, conv.kernel, strict=True))))
    wide[:, :, ::dy, ::dx] = taps
    images = [
        [sum(scipy.signal.correlate2d(c, w, "valid") for c, w in zip(image, row, strict=True)) for row in wide]
        for image in padded
    ]
    return np.array(images)


CASES = [
    (ConvGeometry(3, 10, 14, (5, 4)), 48, 16, 3, 1),
    (ConvGeometry(3, 9, 21, (2, 3), pads=(1, 1, 1, 1)), 24, 8, 2, 1),
    (ConvGeometry(4, 11, 10, (3, 2), pads=(2, 0, 1, 1), dilation=(2, 1)), 80, 16, 1, 3),
    (ConvGeometry(2, 6, 7, (1, 1)), 40, 8, 3, 2),
]


@pytest.mark.parametrize(("conv", "m", "block", "batch", "threads"), CASES)
def test_convolution_matches_float64_for_no_few_and_all_activations(
    conv: ConvGeometry, m: int, block: int, batch: int, threads: int
) -> None:
    rng = np.random.default_rng(m)
    weight = random_weight(m, conv.in_channels * conv.kernel[0] * conv.kernel[1], 0.3, block)
    epilogue = Epilogue(bias=True, residual=True, activation="relu")
    workload = workload_for(weight, conv, batch, epilogue, block)
    target = Target(AVX512.kind, AVX512.mcpu, AVX512.isa, threads)
    bias = rng.standard_normal(m).astype(np.float32)
    r = rng.standard_normal((batch, m, conv.out_height, conv.out_width)).astype(np.float32)
    x = rng.standard_normal((batch, conv.in_channels, conv.in_height, conv.in_width))
    densities = np.resize([0.1, 1.0, 0.0], batch)
    x = (x * (rng.random(x.shape) < densities[:, None, None, None])).astype(np.float32)
    want = np.maximum(convolved(x, weight, conv) + bias[:, None, None] + r, 0)
    for config in configs(COLUMNS, workload, target):
        given = workload.layout_in.to_physical(x), workload.layout_out.to_physical(r)
        got = run(COLUMNS, workload, config, target, weight, bias, *given)
        expected = workload.layout_out.to_physical(want.astype(np.float32))
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4, err_msg=str(config))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_reaches_the_outputs_that_use_it_and_no_other(value: float) -> None:
    conv = ConvGeometry(2, 8, 8, (3, 3))
    weight = random_weight(16, 18, 0.4, 8)
    workload = workload_for(weight, conv, 1, Epilogue(), 8)
    x = np.zeros((1, 2, 8, 8), np.float32)
    x[0, 1, 7, 3] = value
    given = workload.layout_in.to_physical(x)
    got = run(COLUMNS, workload, COLUMNS.default(workload, AVX512), AVX512, weight, None, given, None)
    image = workload.layout_out.to_logical(got, (1, 16, 6, 6))
    x[0, 1, 7, 3] = 1.0
    assert np.array_equal(~np.isfinite(image), convolved(x, weight, conv) != 0)


def test_only_known_density_and_blocks_of_rows_match() -> None:
    conv = ConvGeometry(2, 8, 8, (3, 3))
    workload = workload_for(random_weight(16, 18, 0.4, 8), conv, 1, Epilogue(), 8)
    assert COLUMNS.name in [template.name for template in matching(workload, AVX512)]
    assert COLUMNS.preferred(workload, AVX512)
    assert not COLUMNS.preferred(msgspec.structs.replace(workload, activation_density=3 / 8), AVX512)
    assert not COLUMNS.matches(msgspec.structs.replace(workload, activation_density=msgspec.UNSET), AVX512)
    scattered = msgspec.structs.replace(workload.pattern, kind="unstructured", block=(1, 1))
    assert not COLUMNS.matches(msgspec.structs.replace(workload, pattern=scattered), AVX512)
