"""Filters three rows high by minimal filtering, against float64; what is huge or not finite stays in its windows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from remainder_cases import with_threads
from sparsetvm.schedules.base import matching, template
from test_dense_minimal import AVX512, RELU, workload_of
from test_matmul_templates import activate, configs, conv_reference, run

from sparsetvm.core.config import Config
from sparsetvm.core.layout import Planes, PlaneTiles
from sparsetvm.core.target import Target
from sparsetvm.core.workload import ConvGeometry, Epilogue, Workload

SIGMOID = Epilogue(bias=True, residual=True, activation="sigmoid")
_KERNEL = template("x86.dense_winograd")
SAME = ConvGeometry(5, 13, 18, (3, 3), pads=(1, 1, 1, 1))
GEOMETRIES = {
    "same": SAME,
    "7 x 7": ConvGeometry(3, 7, 7, (3, 3), pads=(1, 1, 1, 1)),
    "wide": ConvGeometry(2, 9, 40, (3, 3), pads=(1, 1, 1, 1)),
    "narrow": ConvGeometry(4, 12, 4, (3, 3), pads=(1, 1, 1, 1)),
    "valid": ConvGeometry(3, 10, 9, (3, 3)),
    "columns of taps": ConvGeometry(6, 8, 11, (3, 1), pads=(1, 0, 1, 0)),
    "5 columns": ConvGeometry(2, 6, 20, (3, 5), pads=(0, 2, 2, 1)),
    "two rows": ConvGeometry(1, 2, 16, (3, 3), pads=(1, 1, 1, 1)),
}


@dataclasses.dataclass
class Operands:
    x: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    residual: np.ndarray

    @classmethod
    def random(cls, workload: Workload) -> Operands:
        conv, rng = workload.conv, np.random.default_rng(workload.m)
        assert conv is not None
        batch = workload.n // (conv.out_height * conv.out_width)
        shapes = [
            (batch, conv.in_channels, conv.in_height, conv.in_width), (workload.m, conv.in_channels, *conv.kernel),
            (workload.m,), (batch, workload.m, conv.out_height, conv.out_width),
        ]  # fmt: skip
        return cls(*(rng.standard_normal(shape).astype(np.float32) for shape in shapes))

    def want(self, workload: Workload) -> np.ndarray:
        """In float64."""
        assert workload.conv is not None
        e = workload.epilogue
        with np.errstate(over="ignore", invalid="ignore"):
            total = conv_reference(self.x, self.weight, workload.conv) + (self.bias[:, None, None] if e.bias else 0)
            return activate(total + (self.residual if e.residual else 0), e)


def computed(workload: Workload, operands: Operands, target: Target, config: Config | None = None) -> np.ndarray:
    """The images that a config computes; everything around them must be zero."""
    lin, lout, e = workload.layout_in, workload.layout_out, workload.epilogue
    assert isinstance(lin, Planes)
    assert isinstance(lout, Planes | PlaneTiles)
    assert _KERNEL.matches(workload, target)
    got = run(
        _KERNEL, workload, config or _KERNEL.default(workload, target), target,
        operands.weight.reshape(workload.m, -1), operands.bias if e.bias else None, lin.to_physical(operands.x),
        lout.to_physical(operands.residual) if e.residual else None,
    )  # fmt: skip
    images = lout.to_logical(got, operands.residual.shape)
    np.testing.assert_array_equal(got, lout.to_physical(images))
    return images


def assert_close(got: np.ndarray, want: np.ndarray) -> None:
    assert np.linalg.norm(got - want) < 2e-6 * np.linalg.norm(want)


@pytest.mark.parametrize("target", AVX512)
@pytest.mark.parametrize("tiled", [False, True], ids=["planes", "tiles"])
@pytest.mark.parametrize("conv", GEOMETRIES.values(), ids=GEOMETRIES)
def test_images_by_points_and_by_taps_match_float64(conv: ConvGeometry, tiled: bool, target: Target) -> None:
    workload = workload_of(conv, 9, 2, Epilogue(bias=True, residual=True, activation="relu"), tiled=tiled)
    operands = Operands.random(workload)
    operands.x[1] *= np.float32(1e25)
    operands.residual[1] *= np.float32(1e25)
    got, want = computed(workload, operands, target), operands.want(workload)
    assert_close(got[0], want[0])
    assert_close(got[1], want[1])


@pytest.mark.parametrize("target", AVX512)
@pytest.mark.parametrize(
    ("threads", "epilogue"), [(1, RELU), (3, SIGMOID), (16, Epilogue())], ids=["relu", "residual", "plain"]
)
def test_all_knobs_and_threads_match_float64(threads: int, epilogue: Epilogue, target: Target) -> None:
    target = with_threads(target, threads)
    workload = workload_of(SAME, 29, 1, epilogue, threads, tiled=threads == 3)
    operands = Operands.random(workload)
    want = operands.want(workload)
    for config in configs(_KERNEL, workload, target):
        assert_close(computed(workload, operands, target, config), want)


@pytest.mark.parametrize("target", AVX512)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_what_is_not_finite_or_huge_stays_in_its_windows(value: float, target: Target) -> None:
    workload = workload_of(SAME, 8, 1, Epilogue(bias=True))
    operands = Operands.random(workload)
    before = computed(workload, operands, target)
    operands.x[0, 1, 6, 10] = value
    after = computed(workload, operands, target)
    reached = np.zeros((13, 18), bool)
    reached[5:8, 9:12] = True
    assert np.abs(after - before)[..., ~reached].max() < 1e-4
    assert not np.isclose(after[0][:, reached], before[0][:, reached]).any()
    assert np.isfinite(after[..., ~reached]).all()
    np.testing.assert_array_equal(np.isnan(after), np.isnan(operands.want(workload)))


@pytest.mark.parametrize("target", AVX512)
@pytest.mark.parametrize("row", [0, 1, 2])
@pytest.mark.parametrize("value", [1e12, 3e38, np.inf, np.nan])
def test_weights_that_would_overflow_are_multiplied_by_taps(value: float, row: int, target: Target) -> None:
    workload = workload_of(SAME, 4, 1, Epilogue(bias=True))
    operands = Operands.random(workload)
    operands.weight[2, 0, row, 1] = value
    want = operands.want(workload)
    got = computed(workload, operands, target)
    others = [0, 1, 3]
    assert_close(got[:, others], want[:, others])
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))


@pytest.mark.parametrize(
    ("conv", "chosen"),
    [
        (ConvGeometry(64, 56, 56, (3, 3), pads=(1, 1, 1, 1)), True),
        (ConvGeometry(512, 7, 7, (3, 3), pads=(1, 1, 1, 1)), True),
        (ConvGeometry(3, 224, 224, (3, 3), pads=(1, 1, 1, 1)), False),
        (ConvGeometry(64, 56, 56, (3, 3), (2, 2), (1, 1, 1, 1)), False),
        (ConvGeometry(64, 56, 56, (1, 1)), False),
        (ConvGeometry(64, 2, 56, (3, 3), pads=(1, 1, 1, 1)), False),
    ],
)
def test_it_is_the_default_where_it_saves_products(conv: ConvGeometry, chosen: bool) -> None:
    workload, target = workload_of(conv, 64, 1, RELU), Target("cpu", "znver4", "avx512")
    assert (next(t.name for t in matching(workload, target) if t.dense) == _KERNEL.name) == chosen
