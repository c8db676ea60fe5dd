"""Padding and pooling: implicit pads, Pad nodes, averages over all pixels."""

from __future__ import annotations

import numpy as np
import pytest
from canonical_checks import find, ops, rewritten
from models import ModelBuilder

from sparsetvm.frontend.load import load_model
from sparsetvm.rewrite.canonical import canonicalize
from sparsetvm.rewrite.canonical.drop_dead_taps import drop_dead_taps
from sparsetvm.rewrite.canonical.make_pads_explicit import make_pads_explicit
from sparsetvm.rewrite.canonical.merge_pad_into_conv import merge_pad_into_conv
from sparsetvm.rewrite.canonical.use_global_average_pool import use_global_average_pool


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"])
@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"), [(3, 1, 1), (3, 2, 1), (2, 1, 1), (2, 3, 1), (3, 1, 2), (1, 2, 1)]
)
@pytest.mark.parametrize("size", [7, 8])
def test_pads_of_conv_become_explicit(mode, kernel, stride, dilation, size):
    b = ModelBuilder()
    # ONNX Runtime refuses SAME padding with dilation.
    mode = "VALID" if dilation > 1 else mode
    x = b.input("x", (1, 2, size, size + 2))
    y = b.conv(x, 2, 4, kernel, stride=stride, dilation=dilation, auto_pad=mode)
    node = find(rewritten(b.output(y), make_pads_explicit), "Conv")
    assert "auto_pad" not in node.attrs
    assert len(node.attrs["pads"]) == 4


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("opset", [9, 13, 19])
def test_pads_of_pools_become_explicit(op, mode, opset):
    b = ModelBuilder(opset=opset)
    y = b.op(op, b.input("x", (1, 2, 7, 6)), kernel_shape=[3, 2], strides=[2, 2], auto_pad=mode)
    node = find(rewritten(b.output(y), make_pads_explicit), op)
    assert "auto_pad" not in node.attrs


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize(("kernel", "stride", "pad"), [(3, 2, 0), (3, 2, 1), (2, 2, 0), (3, 3, 0), (3, 1, 1)])
@pytest.mark.parametrize("size", [6, 7, 8, 9])
def test_windows_cut_short_become_padded_ones(op, kernel, stride, pad, size):
    b = ModelBuilder(opset=13)
    x = b.input("x", (1, 2, size, 7))
    attrs = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [pad] * 4}
    node = find(rewritten(b.output(b.op(op, x, ceil_mode=1, **attrs)), make_pads_explicit), op)
    assert "ceil_mode" not in node.attrs


def test_windows_cut_short_stay_where_padding_counts():
    b = ModelBuilder(opset=13)
    attrs = {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1, "count_include_pad": 1}
    graph = rewritten(b.output(b.op("AveragePool", b.input("x", (1, 2, 8, 8)), **attrs)), make_pads_explicit)
    assert find(graph, "AveragePool").attrs["ceil_mode"] == 1


def test_pads_explicit_fills_in_defaults():
    b = ModelBuilder()
    y = b.op("Conv", b.input("x", (1, 2, 5, 5)), b.const(b.weight((3, 2, 3, 3), 18)))
    assert find(rewritten(b.output(y), make_pads_explicit), "Conv").attrs == {
        "group": 1, "kernel_shape": [3, 3], "strides": [1, 1], "dilations": [1, 1], "pads": [0, 0, 0, 0],
    }  # fmt: skip


def pad(b: ModelBuilder, x: str, pads: list[int], value: float | None = 0.0, mode: str = "constant") -> str:
    """Pad in the form of the builder's opset; spatial pads are (top, left, bottom, right)."""
    full = [0, 0, *pads[:2], 0, 0, *pads[2:]]
    if b.opset < 11:
        return b.op("Pad", x, pads=full, mode=mode, value=value or 0.0)
    if b.opset >= 18:
        return b.op("Pad", x, b.const(pads), b.const(value), b.const([2, -1]), mode=mode)
    return b.op("Pad", x, b.const(full), *([] if value is None else [b.const(value)]), mode=mode)


@pytest.mark.parametrize("opset", [9, 13, 18])
@pytest.mark.parametrize("own", [0, 1])
def test_pad_merges_into_conv(opset, own):
    b = ModelBuilder(opset=opset)
    y = b.conv(pad(b, b.input("x", (1, 2, 6, 6)), [0, 1, 2, 3]), 2, 4, 3, stride=2, pad=own)
    graph = rewritten(b.output(y), merge_pad_into_conv)
    assert ops(graph) == ["Conv"]
    assert find(graph, "Conv").attrs["pads"] == [own, 1 + own, 2 + own, 3 + own]


def test_pad_merges_when_value_is_left_out():
    b = ModelBuilder()
    y = b.conv(pad(b, b.input("x", (1, 2, 6, 6)), [1, 1, 1, 1], value=None), 2, 4, 3, pad=0)
    assert ops(rewritten(b.output(y), merge_pad_into_conv)) == ["Conv"]


@pytest.mark.parametrize("case", ["value", "reflect", "channels"])
def test_pad_stays_when(case):
    b = ModelBuilder()
    x = b.input("x", (1, 2, 6, 6))
    if case == "channels":
        padded = b.op("Pad", x, b.const([0, 0, 0, 0, 0, 2, 0, 0]))
    else:
        padded = pad(
            b, x, [1, 1, 1, 1], 1.0 if case == "value" else 0.0, "reflect" if case == "reflect" else "constant"
        )
    y = b.conv(padded, 4 if case == "channels" else 2, 4, 3, pad=0)
    rewritten(b.output(y), merge_pad_into_conv, expect_change=False)


def test_pad_stays_when_it_crops(tmp_path):
    b = ModelBuilder()
    y = b.conv(pad(b, b.input("x", (1, 2, 6, 6)), [-1, 0, 1, 1]), 2, 4, 3, pad=0)
    graph = load_model(b.output(y).save(tmp_path / "m.onnx")).graph
    assert not merge_pad_into_conv(graph)


@pytest.mark.parametrize(
    ("value", "before", "merges"),
    [(0.0, "Relu", True), (0.0, "Neg", False), (-np.inf, "Neg", True), (-1.0, "Relu", False)],
)
def test_pad_merges_into_max_pool(value, before, merges):
    b = ModelBuilder()
    x = b.op(before, b.input("x", (1, 2, 6, 6)))
    y = b.op("MaxPool", pad(b, x, [1, 1, 1, 1], value), kernel_shape=[3, 3], strides=[2, 2])
    graph = rewritten(b.output(y), merge_pad_into_conv, expect_change=merges)
    assert ops(graph) == [before, *([] if merges else ["Pad"]), "MaxPool"]


def test_pad_as_large_as_the_window_stays_before_max_pool():
    b = ModelBuilder()
    x = b.relu(b.input("x", (1, 2, 6, 6)))
    y = b.op("MaxPool", pad(b, x, [2, 2, 2, 2]), kernel_shape=[2, 2], strides=[1, 1])
    rewritten(b.output(y), merge_pad_into_conv, expect_change=False)


@pytest.mark.parametrize(("own", "counts", "merges"), [(0, 0, True), (1, 0, False), (1, 1, True)])
def test_pad_merges_into_average_pool(own, counts, merges):
    b = ModelBuilder()
    y = b.op(
        "AveragePool",
        pad(b, b.input("x", (1, 2, 6, 6)), [1, 0, 1, 0]),
        kernel_shape=[3, 3],
        strides=[1, 1],
        pads=[own] * 4,
        count_include_pad=counts,
    )
    rewritten(b.output(y), merge_pad_into_conv, expect_change=merges)


def test_pad_with_two_readers_merges_into_each():
    b = ModelBuilder()
    padded = pad(b, b.input("x", (1, 2, 6, 6)), [1, 1, 1, 1])
    y = b.op("Add", b.conv(padded, 2, 4, 3, pad=0), b.conv(padded, 2, 4, 3, pad=0))
    assert ops(rewritten(b.output(y), merge_pad_into_conv)) == ["Conv", "Conv", "Add"]


@pytest.mark.parametrize("opset", [13, 18])
@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("axes", [[2, 3], [-1, -2]])
def test_mean_over_pixels_becomes_global_average_pool(opset, keepdims, axes):
    b = ModelBuilder(opset=opset)
    y = b.reduce_mean(b.relu(b.input("x", (2, 3, 4, 5))), axes, keepdims)
    graph = rewritten(b.output(y), use_global_average_pool)
    assert ops(graph) == ["Relu", "GlobalAveragePool", *([] if keepdims else ["Reshape"])]


def test_average_pool_of_the_whole_image_becomes_global_average_pool():
    b = ModelBuilder()
    y = b.op("AveragePool", b.input("x", (2, 3, 4, 5)), kernel_shape=[4, 5])
    assert ops(rewritten(b.output(y), use_global_average_pool)) == ["GlobalAveragePool"]


@pytest.mark.parametrize("axes", [[1], [3], [1, 2, 3], [0, 2, 3]])
def test_mean_over_other_axes_stays(axes):
    b = ModelBuilder()
    rewritten(b.output(b.reduce_mean(b.input("x", (2, 3, 4, 5)), axes)), use_global_average_pool, expect_change=False)


def test_tensorflow_style_stem_becomes_conv_relu_pool():
    b = ModelBuilder()
    x = pad(b, b.input("x", (1, 3, 15, 15)), [3, 3, 3, 3])
    x = b.relu(b.batch_norm(b.conv(x, 3, 8, 7, stride=2, pad=0, bias=False), 8))
    y = b.op("MaxPool", pad(b, x, [1, 1, 1, 1]), kernel_shape=[3, 3], strides=[2, 2])
    assert ops(rewritten(b.output(y), canonicalize)) == ["Conv", "Relu", "MaxPool"]


@pytest.mark.parametrize(
    ("kernel", "dilation", "pad", "stride", "left"),
    [((3, 3), 24, 24, 1, [1, 1]), ((3, 5), 6, 12, 1, [3, 3]), ((5, 5), 3, 6, 1, [5, 5]), ((3, 3), 24, 24, 2, [1, 1])],
)
def test_taps_that_read_only_padding_are_dropped(kernel, dilation, pad, stride, left):
    b = ModelBuilder()
    weight = b.weight((4, 2, *kernel), 18)
    attrs = {"pads": [pad] * 4, "dilations": [dilation] * 2, "strides": [stride] * 2, "kernel_shape": list(kernel)}
    y = b.op("Conv", b.input("x", (1, 2, 9, 9)), b.const(weight), **attrs)
    graph = rewritten(b.output(y), drop_dead_taps, expect_change=left != list(kernel))
    assert find(graph, "Conv").attrs["kernel_shape"] == left
