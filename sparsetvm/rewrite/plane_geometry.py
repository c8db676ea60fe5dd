"""How much zero padding a convolution needs in its planes, and the layouts that let it read through taps."""

from __future__ import annotations

from sparsetvm.core.graph import SPARSETVM_DOMAIN, Graph
from sparsetvm.core.layout import Planes
from sparsetvm.core.workload import ConvGeometry

# Most zeros that planes of one size share.
COMMON_PAD = 4


def phase_size(conv: ConvGeometry) -> tuple[int, int]:
    """(height, width) of the input split into stride phases."""
    return -(-conv.in_height // conv.stride[0]), -(-conv.in_width // conv.stride[1])


def _reach(conv: ConvGeometry) -> int:
    """Zero rows or columns that the taps read beyond the phase images, the worst of the four sides."""
    reach = 0
    for axis, (size, out) in enumerate(zip(phase_size(conv), (conv.out_height, conv.out_width), strict=True)):
        stride, before = conv.stride[axis], conv.pads[axis]
        first = -before // stride
        last = out - 1 + (conv.dilation[axis] * (conv.kernel[axis] - 1) - before) // stride
        reach = max(reach, -first, last - (size - 1))
    return reach


def required_pad(conv: ConvGeometry) -> int:
    """Smallest `pad` of the output planes with which input and output can have the same row stride."""
    return max(0, phase_size(conv)[1] + _reach(conv) - conv.out_width)


def depthwise_pad(conv: ConvGeometry) -> int:
    """Smallest `pad` of the input planes with which all taps of a depthwise convolution read image or zeros."""
    reach = max(conv.pads[:2])
    sizes = ((conv.in_height, conv.out_height), (conv.in_width, conv.out_width))
    for axis, (size, out) in enumerate(sizes):
        last = (out - 1) * conv.stride[axis] + conv.dilation[axis] * (conv.kernel[axis] - 1) - conv.pads[axis]
        reach = max(reach, last - (size - 1))
    return reach


def conv_layouts(conv: ConvGeometry, batch: int, channels_out: int, pad_out: int, lanes: int) -> tuple[Planes, Planes]:
    """(input, output) planes of a convolution whose output has `pad_out` >= required_pad(conv) zero columns."""
    out = Planes(batch, channels_out, conv.out_height, conv.out_width, pad_out, lanes)
    height, width = phase_size(conv)
    pad_in = out.row_stride - width
    return Planes(batch, conv.in_channels, height, width, pad_in, lanes, conv.stride), out


def plane_pads(graph: Graph) -> dict[tuple[int, int], int]:
    """Zero columns of the planes of each image size: enough for every convolution that writes or reads them.

    One that reaches further than `COMMON_PAD` has planes of its own: all others would compute on its zero columns.
    """
    pads: dict[tuple[int, int], int] = {}
    for node in graph.nodes:
        if node.is_op("conv2d", "depthwise_conv2d", domain=SPARSETVM_DOMAIN):
            conv = node.attrs["conv"]
            if node.op == "conv2d":
                size, need = (conv.out_height, conv.out_width), required_pad(conv)
            else:
                size, need = (conv.in_height, conv.in_width), depthwise_pad(conv)
            if need <= COMMON_PAD:
                pads[size] = max(pads.get(size, 0), need)
    return pads
