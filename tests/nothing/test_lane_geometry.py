"""Kernels on images in lanes: which pixel a tap reads at each tile, and where it reads nothing but zeros."""

from __future__ import annotations

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sparsetvm.schedules.x86.geometry import supports_taps, tap_geometry

from sparsetvm.core.layout import BatchTiles, Planes
from sparsetvm.core.pattern import PatternSummary
from sparsetvm.core.workload import ConvGeometry, Epilogue, Workload
from sparsetvm.rewrite.plane_geometry import depthwise_pad

_LANES = 4
_DENSE = PatternSummary("dense", (1, 1), 1.0, 1.0, 0, "")


def layer(conv: ConvGeometry, pads: tuple[int, int, int]) -> Workload:
    """A convolution with two outputs a group; pads: zeros beyond those needed around X, around Y, the residual."""
    m, size = 2 * conv.groups, (conv.out_height, conv.out_width)
    k = conv.in_channels // conv.groups * conv.kernel[0] * conv.kernel[1]
    lin = BatchTiles(conv.in_channels, conv.in_height, conv.in_width, depthwise_pad(conv) + pads[0], _LANES)
    lout, residual = (BatchTiles(m, *size, pad, _LANES) for pad in pads[1:])
    n = _LANES * size[0] * size[1]
    return Workload("conv2d", m, k, n, lin, lout, Epilogue(residual=True), _DENSE, conv, layout_residual=residual)


@settings(deadline=None)
@given(
    size=st.tuples(st.integers(1, 7), st.integers(1, 7)), kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 2), st.integers(1, 2)), pads=st.tuples(*[st.integers(0, 2)] * 4),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)), groups=st.integers(1, 2),
    extra=st.tuples(st.integers(0, 1), st.integers(0, 1), st.integers(0, 1)),
)  # fmt: skip
def test_taps_read_the_padded_image_and_say_where_it_is_zero(size, kernel, stride, pads, dilation, groups, extra):
    conv = ConvGeometry(2 * groups, *size, kernel, stride, pads, dilation, groups)
    assume(conv.out_height > 0 and conv.out_width > 0)
    workload = layer(conv, extra)
    assert supports_taps(workload)
    geometry, layout = tap_geometry(workload), workload.layout_in
    x = np.arange(1, 1 + _LANES * 2 * groups * size[0] * size[1], dtype=np.float32)
    x = x.reshape(_LANES, 2 * groups, *size)
    flat = layout.to_physical(x).reshape(-1)
    top, left, bottom, right = pads
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    windows = list(np.ndindex(2, *kernel))
    names = [windows[column] for column in geometry.arranged(np.arange(workload.k)[None])[0]]
    assert geometry.total_tiles == conv.out_height * conv.out_width
    for tile in range(geometry.total_tiles):
        row, column = divmod(tile, conv.out_width)
        image, at = divmod(tile, geometry.tiles)
        start = geometry.x0 + image * geometry.x_batch + at * geometry.x_tile
        for group, taps in enumerate(geometry.taps):
            for i, (channel, ky, kx) in enumerate(names):
                y = row * stride[0] + ky * dilation[0]
                z = column * stride[1] + kx * dilation[1]
                read = flat[start + taps[i] : start + taps[i] + _LANES]
                np.testing.assert_array_equal(read, padded[:, group * 2 + channel, y, z])
                if geometry.inside is not None:
                    first, end, begin, stop = geometry.inside[i]
                    assert (first <= image < end and begin <= at < stop) == (read[0] != 0)


@settings(deadline=None)
@given(pads=st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2)), size=st.integers(1, 5))
def test_tiles_and_zeros_cover_the_output_once(pads, size):
    workload = layer(ConvGeometry(3, size, size + 1, (3, 3), pads=(1, 1, 1, 1)), pads)
    geometry, written = tap_geometry(workload), np.zeros(workload.layout_out.physical_shape(()), int).reshape(-1)
    for image, tile, row in np.ndindex(geometry.batch, geometry.tiles, workload.m):
        at = geometry.y0 + image * geometry.y_batch + tile * geometry.y_tile + row * geometry.row_stride
        written[at : at + _LANES] += 1
    for zeros in geometry.zeros:
        for i in range(zeros.count):
            for start, stop in zeros.ranges:
                written[i * zeros.step + start : i * zeros.step + stop] += 1
    assert (written == 1).all()


def test_pixels_without_zeros_between_them_are_one_row_of_tiles():
    workload = layer(ConvGeometry(3, 4, 5, (1, 1)), (0, 0, 0))
    assert (tap_geometry(workload).batch, tap_geometry(workload).tiles) == (1, 20)
    assert tap_geometry(layer(ConvGeometry(3, 4, 5, (1, 1)), (0, 1, 0))).batch == 4


def test_layouts_that_do_not_fit_are_refused():
    conv = ConvGeometry(3, 4, 5, (3, 3), pads=(1, 1, 1, 1))
    fits = layer(conv, (0, 0, 0))

    def with_layouts(lin: object, lout: object) -> Workload:
        return Workload("conv2d", 2, 27, 80, lin, lout, Epilogue(), _DENSE, conv)  # type: ignore[arg-type]

    assert not supports_taps(with_layouts(BatchTiles(3, 4, 5, 0, _LANES), fits.layout_out)), "too few zeros"
    assert not supports_taps(with_layouts(BatchTiles(3, 4, 5, 1, 8), fits.layout_out)), "other lanes"
    assert not supports_taps(with_layouts(fits.layout_in, Planes(4, 2, 4, 5, 1, _LANES)))
    assert not supports_taps(with_layouts(Planes(4, 3, 4, 5, 1, _LANES), fits.layout_out))
