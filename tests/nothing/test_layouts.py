"""Layouts store and give back every array, and keep zero what must be zero."""

from __future__ import annotations

import msgspec
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sparsetvm.core.layout import AnyLayout, BatchTiles, Planes, PlaneTiles, Tiled
from sparsetvm.core.workload import ConvGeometry
from sparsetvm.rewrite.plane_geometry import conv_layouts, phase_size, required_pad

sizes = st.integers(1, 9)
lanes = st.sampled_from([4, 8, 16])


def numbers(shape: tuple[int, ...]) -> np.ndarray:
    return np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(shape)


@given(rows=sizes, cols=sizes, lanes=lanes)
def test_tiled_gives_back_what_it_stored(rows, cols, lanes):
    layout = Tiled(rows, cols, lanes)
    x = numbers((rows, cols))
    physical = layout.to_physical(x)
    assert physical.shape == layout.physical_shape(x.shape)
    np.testing.assert_array_equal(layout.to_logical(physical, x.shape), x)


@given(batch=st.integers(1, 2), channels=sizes, height=sizes, width=sizes, pad=st.integers(0, 3), lanes=lanes)
def test_images_come_back_and_everything_else_is_zero(batch, channels, height, width, pad, lanes):
    x = numbers((batch, channels, height, width))
    for kind in (Planes, PlaneTiles):
        layout = kind(batch, channels, height, width, pad, lanes)
        physical = layout.to_physical(x)
        assert physical.shape == layout.physical_shape(x.shape)
        np.testing.assert_array_equal(layout.to_logical(physical, x.shape), x)
        assert np.count_nonzero(physical) == x.size
        decoded = msgspec.json.decode(msgspec.json.encode(layout), type=AnyLayout)
        assert decoded == layout


@given(channels=sizes, height=sizes, width=sizes, pad=st.integers(0, 3), lanes=lanes)
def test_images_in_lanes_come_back_and_everything_else_is_zero(channels, height, width, pad, lanes):
    layout = BatchTiles(channels, height, width, pad, lanes)
    x = numbers((lanes, channels, height, width))
    physical = layout.to_physical(x)
    assert physical.shape == layout.physical_shape(x.shape)
    np.testing.assert_array_equal(layout.to_logical(physical, x.shape), x)
    assert np.count_nonzero(physical) == x.size
    assert np.count_nonzero(physical[layout.mask()]) == x.size
    assert msgspec.json.decode(msgspec.json.encode(layout), type=AnyLayout) == layout


@given(
    channels=st.integers(1, 2), height=st.integers(3, 9), width=st.integers(3, 9), kh=st.integers(1, 3),
    kw=st.integers(1, 3), stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    pads=st.tuples(*[st.integers(0, 2)] * 4), dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    extra=st.integers(0, 2),
)  # fmt: skip
def test_taps_read_the_padded_image(channels, height, width, kh, kw, stride, pads, dilation, extra):
    conv = ConvGeometry(channels, height, width, (kh, kw), stride, pads, dilation)
    if conv.out_height < 1 or conv.out_width < 1:
        return
    source, out = conv_layouts(conv, 1, 1, required_pad(conv) + extra, 8)
    assert source.row_stride == out.row_stride
    assert (source.height, source.width) == phase_size(conv)
    x = numbers((1, channels, height, width))
    flat = source.to_physical(x).reshape(-1)
    top, left, bottom, right = pads
    padded = np.pad(x[0], ((0, 0), (top, bottom), (left, right)))
    for c in range(channels):
        for ky in range(kh):
            for kx in range(kw):
                tap = source.phase_tap(c, ky * dilation[0] - top, kx * dilation[1] - left)
                for y in range(conv.out_height):
                    for column in range(conv.out_width):
                        at = source.origin + tap + y * source.row_stride + column
                        want = padded[c, y * stride[0] + ky * dilation[0], column * stride[1] + kx * dilation[1]]
                        assert flat[at] == want
    last_tap = max(
        source.phase_tap(channels - 1, ky * dilation[0] - top, kx * dilation[1] - left)
        for ky in range(kh) for kx in range(kw)
    )  # fmt: skip
    assert source.origin + (out.tiles - 1) * 8 + last_tap + 8 <= flat.size
    first_tap = min(
        source.phase_tap(0, ky * dilation[0] - top, kx * dilation[1] - left) for ky in range(kh) for kx in range(kw)
    )
    assert source.origin + first_tap >= 0
