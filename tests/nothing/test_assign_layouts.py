"""Where assign_layouts moves data, and where it must not."""

from __future__ import annotations

from canonical_checks import rewritten
from hypothesis import assume, given
from hypothesis import strategies as st
from models import ModelBuilder, mobile_net

from sparsetvm.core.graph import SPARSETVM_DOMAIN
from sparsetvm.core.layout import Planes
from sparsetvm.core.target import Target
from sparsetvm.core.workload import ConvGeometry
from sparsetvm.rewrite.assign_layouts import assign_layouts
from sparsetvm.rewrite.canonical import canonicalize
from sparsetvm.rewrite.fuse_epilogues import fuse_epilogues
from sparsetvm.rewrite.make_layers import make_layers
from sparsetvm.rewrite.plane_geometry import depthwise_pad

TARGET = Target("cpu", "skylake-avx512", "avx512")


def test_strided_depthwise_convolution_reads_what_the_layer_before_it_wrote() -> None:
    graph = rewritten(mobile_net(), canonicalize, make_layers, fuse_epilogues, expect_change=None)
    assign_layouts(graph, TARGET)
    depthwise = [node for node in graph.nodes if node.is_op("depthwise_conv2d", domain=SPARSETVM_DOMAIN)]
    assert any(node.attrs["conv"].stride == (2, 2) for node in depthwise)
    made = {name: node for node in graph.nodes for name in node.outputs}
    for node in depthwise:
        layout = graph.values[node.inputs[0]].layout
        assert isinstance(layout, Planes)
        assert layout.phases == (1, 1)
        assert layout.pad >= depthwise_pad(node.attrs["conv"])
        assert not made[node.inputs[0]].is_op("convert", domain=SPARSETVM_DOMAIN)


_two = st.tuples(st.integers(1, 3), st.integers(1, 3))


@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)), kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=_two, dilation=_two, pads=st.tuples(*[st.integers(0, 4)] * 4),
)  # fmt: skip
def test_depthwise_pad_is_how_far_the_taps_reach_outside_the_image(size, kernel, stride, dilation, pads) -> None:  # type: ignore[no-untyped-def]
    conv = ConvGeometry(1, *size, kernel, stride, pads, dilation)
    assume(conv.out_height > 0 and conv.out_width > 0)
    outputs = (conv.out_height, conv.out_width)
    outside = [0]
    for axis in (0, 1):
        reads = {
            o * stride[axis] + k * dilation[axis] - pads[axis]
            for o in range(outputs[axis])
            for k in range(kernel[axis])
        }
        outside += [-min(reads), max(reads) - (size[axis] - 1)]
    assert depthwise_pad(conv) == max(outside)


def test_images_are_put_together_and_gated_in_planes() -> None:
    b = ModelBuilder(opset=13)
    x = b.input("x", (1, 3, 8, 8))
    y = b.op("Concat", b.conv(x, 3, 4, 3, pad=1), b.conv(x, 3, 5, 3, pad=1), x, axis=1)
    gate = b.op("Sigmoid", b.conv(b.op("GlobalAveragePool", y), 12, 12))
    y = b.conv(b.op("Mul", gate, y), 12, 4, 3, pad=1)
    graph = rewritten(b.output(y), canonicalize, make_layers, fuse_epilogues, expect_change=None)
    assign_layouts(graph, TARGET)
    for op in ("Concat", "scale_channels"):
        (node,) = (node for node in graph.nodes if node.op == op)
        assert isinstance(graph.values[node.outputs[0]].layout, Planes)
    moved = [node.inputs[0] for node in graph.nodes if node.is_op("convert", domain=SPARSETVM_DOMAIN)]
    assert all(graph.values[name].shape != (1, 12, 8, 8) for name in moved)
