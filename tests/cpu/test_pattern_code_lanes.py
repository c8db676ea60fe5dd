"""Pattern code on images in lanes leaves out pieces that would read nothing but zeros, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from remainder_cases import TARGETS, compile_kernel, with_threads
from sparsetvm.schedules.base import template

from sparsetvm.analysis.patterns import summarize
from sparsetvm.core.layout import BatchTiles
from sparsetvm.core.target import Target
from sparsetvm.core.workload import ConvGeometry, Epilogue, Workload
from sparsetvm.measure.reference import inputs_of, make_reference
from sparsetvm.rewrite.plane_geometry import depthwise_pad

AVX512 = [TARGETS[0]]
_KERNEL = template("x86.pattern_code")


def layer(conv: ConvGeometry, target: Target, activation: str = "relu") -> tuple[Workload, np.ndarray, np.ndarray]:
    """A convolution with 70 outputs, its weight and bias."""
    rng, m = np.random.default_rng(0), 70
    weight = rng.standard_normal((m, conv.in_channels // conv.groups * 9)).astype(np.float32)
    weight[rng.random(weight.shape) > 0.1] = 0
    weight[3] = 0
    lin = BatchTiles(conv.in_channels, conv.in_height, conv.in_width, depthwise_pad(conv), target.lanes)
    lout = BatchTiles(m, conv.out_height, conv.out_width, 1, target.lanes)
    epilogue, n = Epilogue(True, True, activation), target.lanes * conv.out_height * conv.out_width  # type: ignore[arg-type]
    workload = Workload("conv2d", m, weight.shape[1], n, lin, lout, epilogue, summarize(weight), conv)
    return workload, weight, rng.standard_normal(m).astype(np.float32)


def check(conv: ConvGeometry, target: Target, activation: str = "relu", **knobs: int | str) -> list[list[int]] | None:
    """Compare a config with float64; returns where its pieces are run."""
    workload, weight, bias = layer(conv, target, activation)
    config = _KERNEL.default(workload, target).replace(**knobs)
    assert _KERNEL.space(workload, target).contains(config)
    reference = make_reference(workload, weight, bias)
    packed = _KERNEL.pack(weight, bias, workload, config, target)
    kernel = compile_kernel(_KERNEL.kernel(workload, config, packed, target, "kernel"), target)
    out = tvm.runtime.tensor(np.full(workload.layout_out.physical_shape(()), np.nan, np.float32))
    kernel(*map(tvm.runtime.tensor, (*inputs_of(reference), *packed.arrays)), out)
    assert not reference.fault(out.numpy())
    ranges = packed.meta["ranges"]
    return None if ranges is None else ranges.tolist()


PADDED = ConvGeometry(96, 5, 4, (3, 3), pads=(1, 1, 1, 1))


@pytest.mark.parametrize("target", AVX512)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("order", ["rows", "k"])
@pytest.mark.parametrize("activation", ["clip", "silu"])
def test_blocks_of_one_pixel_run_where_it_lies_in_the_image(
    activation: str, order: str, threads: int, target: Target
) -> None:
    ranges = check(PADDED, with_threads(target, threads), activation, k_block=96, order=order, groups=1)
    assert ranges is not None
    assert sorted(set(map(tuple, ranges))) == sorted(
        (first, end, left, right) for first, end in ((0, 4), (0, 5), (1, 5)) for left, right in ((0, 3), (0, 4), (1, 4))
    )
    assert ranges[-1] == [0, 5, 0, 4]


@pytest.mark.parametrize("target", AVX512)
@pytest.mark.parametrize("block", [192, 288, 864])
def test_blocks_of_several_pixels_run_where_one_of_them_lies_in_the_image(block: int, target: Target) -> None:
    ranges = check(PADDED, target, k_block=block, prefetch="next", tiles=8)
    assert ranges is not None
    assert (ranges == [[0, 5, 0, 4]] * len(ranges)) == (block == 864)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "conv",
    [
        ConvGeometry(96, 7, 6, (3, 3), (2, 2), (1, 1, 1, 1)),
        ConvGeometry(96, 5, 5, (3, 3), pads=(2, 2, 2, 2), dilation=(2, 2)),
        ConvGeometry(192, 4, 5, (3, 3), pads=(1, 1, 1, 1), groups=2),
        ConvGeometry(96, 4, 4, (3, 3), pads=(0, 2, 2, 0)),
    ],
    ids=["stride", "dilation", "groups", "uneven"],
)
def test_other_convolutions_leave_out_what_they_can(conv: ConvGeometry, target: Target) -> None:
    assert check(conv, target, k_block=96) is not None


@pytest.mark.parametrize("target", TARGETS[1:])
def test_nothing_is_left_out_where_code_runs_two_tiles_at_once(target: Target) -> None:
    assert check(PADDED, target, k_block=96, rows=6) is None


@pytest.mark.parametrize("target", AVX512)
def test_nothing_is_left_out_where_no_column_is_always_needed(target: Target) -> None:
    """Padding beyond the kernel: the corner pixels read zeros only."""
    assert check(ConvGeometry(96, 3, 3, (3, 3), pads=(3, 3, 3, 3)), target, k_block=96) is None


@pytest.mark.parametrize("target", AVX512)
def test_nothing_is_left_out_where_threads_share_rows(target: Target) -> None:
    assert check(ConvGeometry(96, 2, 1, (3, 3), pads=(1, 1, 1, 1)), with_threads(target, 2), k_block=96) is None


def test_default_blocks_are_those_of_one_pixel() -> None:
    target = Target("cpu", "znver4", "avx512")
    workload, _, _ = layer(ConvGeometry(512, 5, 4, (3, 3), pads=(1, 1, 1, 1)), target)
    assert _KERNEL.default(workload, target).int("k_block") == 256
