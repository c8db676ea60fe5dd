"""Filters in the lanes: convolutions of images that leave lanes of the grid empty, with every kind of epilogue."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from remainder_cases import TARGETS, with_threads
from sparsetvm.schedules.base import matching, template
from test_matmul_templates import activate, conv_reference, run

from sparsetvm.core.config import Config
from sparsetvm.core.layout import AnyLayout, Planes, PlaneTiles
from sparsetvm.core.pattern import PatternSummary
from sparsetvm.core.target import Target
from sparsetvm.core.workload import ConvGeometry, Epilogue, Workload
from sparsetvm.rewrite.plane_geometry import conv_layouts, required_pad

DENSE = PatternSummary("dense", (1, 1), 1.0, 1.0, 0, "0")
_KERNEL = template("x86.dense_filters")
SIGMOID = Epilogue(bias=True, residual=True, activation="sigmoid")
SAME = ConvGeometry(5, 7, 7, (3, 3), pads=(1, 1, 1, 1))


def workload_of(
    conv: ConvGeometry, m: int, target: Target, epilogue: Epilogue, batch: int = 1, tiles: bool = False
) -> tuple[Workload, AnyLayout, AnyLayout]:
    lin, lout = conv_layouts(conv, batch, m, required_pad(conv), target.lanes)
    if tiles:
        lin, lout = (
            PlaneTiles(batch, channels, at.height, at.width, 1, target.lanes)
            for channels, at in ((conv.in_channels, lin), (m, lout))
        )
    k, n = conv.in_channels * conv.kernel[0] * conv.kernel[1], batch * conv.out_height * conv.out_width
    return Workload("conv2d", m, k, n, lin, lout, epilogue, DENSE, conv, threads=target.threads), lin, lout


def check(
    conv: ConvGeometry, m: int, target: Target, epilogue: Epilogue, batch: int = 1, tiles: bool = False,
    **knobs: int | str,
) -> None:  # fmt: skip
    """Compare a config with float64, the columns that are no pixels included."""
    workload, lin, lout = workload_of(conv, m, target, epilogue, batch, tiles)
    config: Config = _KERNEL.default(workload, target).replace(**knobs)
    assert _KERNEL.space(workload, target).contains(config)
    rng = np.random.default_rng(m)
    weight = rng.standard_normal((m, conv.in_channels, *conv.kernel)).astype(np.float32)
    x = rng.standard_normal((batch, conv.in_channels, conv.in_height, conv.in_width)).astype(np.float32)
    bias = rng.standard_normal(m).astype(np.float32)
    residual = rng.standard_normal((batch, m, conv.out_height, conv.out_width)).astype(np.float32)
    want = conv_reference(x, weight, conv) + (bias[:, None, None] if epilogue.bias else 0)
    want = activate(want + (residual if epilogue.residual else 0), epilogue)
    got = run(
        _KERNEL, workload, config, target, weight.reshape(m, -1), bias if epilogue.bias else None, lin.to_physical(x),
        lout.to_physical(residual) if epilogue.residual else None,
    )  # fmt: skip
    assert np.linalg.norm(lout.to_logical(got, want.shape) - want) < 1e-5 * np.linalg.norm(want)
    np.testing.assert_array_equal(got, lout.to_physical(lout.to_logical(got, want.shape)))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("epilogue", [Epilogue(), Epilogue(True, False, "relu"), SIGMOID], ids=lambda e: e.activation)
@pytest.mark.parametrize("tiles", [False, True], ids=["planes", "tiles"])
def test_epilogues_of_both_layouts_match_float64(tiles: bool, epilogue: Epilogue, target: Target) -> None:
    conv = ConvGeometry(9, 7, 7, (1, 1)) if tiles else SAME
    check(conv, 32, target, epilogue, tiles=tiles)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("threads", [1, 3])
def test_filters_that_fill_no_vector_are_not_written(threads: int, target: Target) -> None:
    check(SAME, 2 * target.lanes + 5, with_threads(target, threads), SIGMOID, batch=2, vectors=2)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("pixels", [4, 5, 8])
def test_pixels_that_fill_no_block_and_blocks_of_columns_match_float64(pixels: int, target: Target) -> None:
    check(ConvGeometry(40, 6, 5, (3, 3), pads=(1, 1, 1, 1)), 20, target, Epilogue(), pixels=pixels, k_block=256)


@pytest.mark.parametrize("target", TARGETS)
def test_strided_and_dilated_windows_match_float64(target: Target) -> None:
    check(ConvGeometry(4, 13, 13, (3, 3), (2, 2), (1, 1, 1, 1)), 16, target, Epilogue())
    check(ConvGeometry(4, 9, 9, (3, 3), pads=(2, 2, 2, 2), dilation=(2, 2)), 16, target, Epilogue())


@pytest.mark.parametrize("target", TARGETS)
def test_only_images_with_empty_lanes_are_taken(target: Target) -> None:
    found = {}
    for size in (7, 64):
        workload, _, _ = workload_of(ConvGeometry(8, size, size, (1, 1)), 64, target, Epilogue())
        found[size] = [t.name for t in matching(workload, target)]
    assert _KERNEL.name in found[7]
    assert _KERNEL.name not in found[64]


@pytest.mark.parametrize("threads", [2, 5, 16])
def test_threads_share_filters_and_tiles(threads: int) -> None:
    target = Target("cpu", "znver4", "avx512", threads)
    workload, _, _ = workload_of(ConvGeometry(8, 14, 14, (1, 1)), 256, target, Epilogue())
    config = _KERNEL.default(workload, target)
    packed = _KERNEL.pack(np.ones((256, 8), np.float32), None, workload, config, target)
    blocks = -(-256 // (config.int("vectors") * target.lanes))
    assert blocks * packed.meta["parts"] >= threads


@pytest.mark.parametrize("target", TARGETS)
def test_parts_without_a_pixel_write_zeros(target: Target) -> None:
    conv, few = ConvGeometry(2, 5, 1, (3, 3), pads=(40, 40, 40, 40), dilation=(40, 40)), with_threads(target, 8)
    check(conv, 16, few, SIGMOID, pixels=4)


@pytest.mark.parametrize("target", TARGETS)
def test_sums_of_a_long_image_take_a_part_of_l2(target: Target) -> None:
    conv, small = ConvGeometry(3, 150, 1, (3, 1), pads=(1, 1, 0, 0)), msgspec.structs.replace(target, l2=1 << 16)
    workload, _, _ = workload_of(conv, 16, small, Epilogue())
    config = _KERNEL.default(workload, small)
    assert _KERNEL.pack(np.ones((16, 9), np.float32), None, workload, config, small).meta["parts"] > 1
    check(conv, 16, small, SIGMOID)


def test_it_is_the_default_of_dense_layers_where_a_tenth_of_the_lanes_is_empty() -> None:
    target = Target("cpu", "znver4", "avx512")
    workload, lin, _ = workload_of(SAME, 64, target, Epilogue())
    assert isinstance(lin, Planes)
    assert next(t.name for t in matching(workload, target) if t.dense) == _KERNEL.name
