"""Images into lanes, out of them, and pooled there."""

from __future__ import annotations

import numpy as np
import pytest
from remainder_cases import TARGETS, compile_kernel, run_kernel, with_threads
from sparsetvm.schedules.operators import Pooling
from sparsetvm.schedules.x86.remainder.batch_pooling import batch_global_pooling_kernel, batch_pooling_kernel
from sparsetvm.schedules.x86.remainder.batch_tiles import gather_lanes_kernel
from sparsetvm.schedules.x86.remainder.convert import convert_kernel

from sparsetvm.core.layout import PLAIN, AnyLayout, BatchTiles, Planes, PlaneTiles
from sparsetvm.core.target import Target
from sparsetvm.core.workload import ConvGeometry
from sparsetvm.errors import SparseTvmError

_RANDOM = np.random.default_rng(0)


def physical(layout: AnyLayout, x: np.ndarray) -> np.ndarray:
    return x if layout is PLAIN else layout.to_physical(x)  # type: ignore[union-attr]


# Pads of the source and of what is made of it: equal row strides, zero columns to leave out and to add.
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("pads", [(1, 1), (1, 0), (0, 2)])
@pytest.mark.parametrize("kind", ["plain", "planes", "tiles"])
@pytest.mark.parametrize("size", [(7, 7), (3, 17)])
def test_slices_of_a_batch_are_gathered_into_lanes(
    size: tuple[int, int], kind: str, pads: tuple[int, int], target: Target
) -> None:
    images, channels = (1 if size == (7, 7) else 4), 3
    x = _RANDOM.standard_normal((target.lanes, channels, *size)).astype(np.float32)
    sources: dict[str, AnyLayout] = {
        "plain": PLAIN,
        "planes": Planes(images, channels, *size, pads[0], target.lanes),
        "tiles": PlaneTiles(images, channels, *size, pads[0], target.lanes),
    }
    source, out = sources[kind], BatchTiles(channels, *size, pads[1], target.lanes)
    slices = [physical(source, x[at : at + images]) for at in range(0, target.lanes, images)]
    kernel = gather_lanes_kernel(source, (images, channels, *size), out, with_threads(target, 1 + pads[1]), "gather")
    got = run_kernel(compile_kernel(kernel, target), slices, out.physical_shape(()))
    np.testing.assert_array_equal(got, out.to_physical(x))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("size", "pad"), [((7, 7), 1), ((1, 1), 0), ((4, 8), 2)])
def test_conversion_into_lanes_and_back(size: tuple[int, int], pad: int, target: Target) -> None:
    x = _RANDOM.standard_normal((target.lanes, 5, *size)).astype(np.float32)
    out = BatchTiles(5, *size, pad, target.lanes)
    there = compile_kernel(convert_kernel(PLAIN, out, x.shape, with_threads(target, 2), "there"), target)
    packed = run_kernel(there, [x], out.physical_shape(x.shape))
    np.testing.assert_array_equal(packed, out.to_physical(x))
    back = compile_kernel(convert_kernel(out, PLAIN, x.shape, with_threads(target, 2), "back"), target)
    np.testing.assert_array_equal(run_kernel(back, [packed], x.shape), x)


def test_phases_are_not_put_into_lanes() -> None:
    target = TARGETS[0].values[0]
    phases = Planes(16, 3, 4, 4, 1, 16, (2, 2))
    with pytest.raises(SparseTvmError, match="no conversion from Planes to BatchTiles"):
        convert_kernel(phases, BatchTiles(3, 8, 8, 1, 16), (16, 3, 8, 8), target, "phases")


WINDOWS = {
    "3x3_stride2": ConvGeometry(3, 14, 9, (3, 3), (2, 2), (1, 1, 1, 1)),
    "pick": ConvGeometry(3, 7, 8, (1, 1), (2, 2)),
    "3x2_stride3_uneven_pads": ConvGeometry(3, 11, 8, (3, 2), (3, 3), (0, 1, 2, 0)),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", ["max", "average", "average_with_pads"])
@pytest.mark.parametrize("window", WINDOWS)
def test_pooling_in_lanes_matches_float64(window: str, kind: str, target: Target) -> None:
    w = WINDOWS[window]
    pooling = Pooling("max" if kind == "max" else "average", w, kind == "average_with_pads")
    # All negative: a zero around the image taken for a pixel would win the maximum.
    x = -1 - _RANDOM.random((target.lanes, 3, w.in_height, w.in_width)).astype(np.float32)
    expected = np.zeros((target.lanes, 3, w.out_height, w.out_width))
    for row, column in np.ndindex(w.out_height, w.out_width):
        pixels = x[:, :, pooling.rows(row)][..., pooling.columns(column)].astype(np.float64)
        area = w.kernel[0] * w.kernel[1] if pooling.include_pad else pixels.shape[2] * pixels.shape[3]
        expected[..., row, column] = pixels.max((2, 3)) if kind == "max" else pixels.sum((2, 3)) / area
    source = BatchTiles(3, w.in_height, w.in_width, 1, target.lanes)
    out = BatchTiles(3, w.out_height, w.out_width, 1, target.lanes)
    kernel = batch_pooling_kernel(source, out, pooling, with_threads(target, 2), "pooling")
    got = run_kernel(compile_kernel(kernel, target), [source.to_physical(x)], out.physical_shape(()))
    want = out.to_physical(expected)
    assert np.abs(got - want).max() < 1e-6
    assert (got[want == 0] == 0).all()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", ["max", "average"])
@pytest.mark.parametrize("channels", [1, 16, 21])
def test_global_pooling_in_lanes_matches_float64(channels: int, kind: str, target: Target) -> None:
    x = -1 - _RANDOM.random((target.lanes, channels, 3, 5)).astype(np.float32)
    expected = (x.astype(np.float64).max if kind == "max" else x.astype(np.float64).mean)((2, 3), keepdims=True)
    source = BatchTiles(channels, 3, 5, 1, target.lanes)
    kernel = batch_global_pooling_kernel(source, "max" if kind == "max" else "average", target, "pooling")
    got = run_kernel(compile_kernel(kernel, target), [source.to_physical(x)], expected.shape)
    assert np.abs(got - expected).max() < 1e-6
