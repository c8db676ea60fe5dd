"""Which Resize nodes the kernel for images implements, and how their two axes are resampled."""

from __future__ import annotations

from sparsetvm.core.graph import Graph, Node
from sparsetvm.core.resampling import COORDINATES, Resampling
from sparsetvm.core.target import Target

_MOST_COLUMNS = 4096  # of X or Y: code is written out for each vector of a row


def resized_axes(graph: Graph, node: Node, target: Target) -> tuple[Resampling, Resampling] | None:
    """(rows, columns) of a Resize of float32 images, None where it is left to TVM.

    The frontend has rewritten scales that are not the ratio of the sizes. On a CPU, two vectors of a row must hold all
    that a vector of the result is made of.
    """
    source, out = graph.values[node.inputs[0]], graph.values[node.outputs[0]]
    mode, coordinates, rounding = (
        str(node.attrs.get(name, default))
        for name, default in (
            ("mode", "nearest"),
            ("coordinate_transformation_mode", "half_pixel"),
            ("nearest_mode", "round_prefer_floor"),
        )
    )
    images = len(source.shape) == 4 and source.shape[:2] == out.shape[:2] and source.dtype == "float32"
    plain = not any(node.attrs.get(name, 0) for name in ("antialias", "exclude_outside", "axes"))
    known = mode in ("nearest", "linear") and coordinates in COORDINATES
    if not images or not plain or not known or 0 in out.shape:
        return None
    rows, columns = (
        Resampling(before, after, after / before, coordinates, mode, rounding)
        for before, after in zip(source.shape[2:], out.shape[2:], strict=True)
    )
    if target.kind == "cuda":
        return rows, columns
    small = max(columns.size_in, columns.size_out) <= _MOST_COLUMNS
    return (rows, columns) if small and columns.reach(target.lanes) <= 2 * target.lanes else None
