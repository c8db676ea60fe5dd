"""Fuse 2 x 2 max pooling, and an activation behind it, into the dense first convolution of a network.

Before:  y = conv2d(x); p = MaxPool(y); o = Relu(p)
After:   o = pooled_conv2d(x)

For convolutions whose weight is not pruned and whose few input channels and large images make them bound by arithmetic
and by what they write: their kernel saves half of the products and never stores what is pooled away
(schedules/x86/remainder/pooled_conv.py). An activation may stand on either side of the pool as long as it never falls.
"""

from __future__ import annotations

import msgspec
import numpy as np

from sparsetvm.analysis.patterns import summarize
from sparsetvm.core.graph import SPARSETVM_DOMAIN, Graph, Node
from sparsetvm.core.target import Target
from sparsetvm.core.workload import ConvGeometry, Epilogue
from sparsetvm.formats.toom_cook import HUGE_WEIGHT, TAPS
from sparsetvm.rewrite.assign_layouts import pool_fits
from sparsetvm.rewrite.canonical.edit import Uses, drop_into
from sparsetvm.rewrite.fuse_epilogues import activation_of

_MOST_CHANNELS = 4
_MOST_TAPS = 7  # along a row
_RISING = ("none", "relu", "clip", "sigmoid")


def fuse_max_pool(graph: Graph, target: Target) -> bool:
    """Fuse all that fit on a CPU with AVX-512; returns whether anything changed."""
    if target.kind != "cpu" or target.isa != "avx512":
        return False
    changed = False
    for node in list(graph.nodes):
        if not node.is_op("conv2d", domain=SPARSETVM_DOMAIN) or not _shallow(node):
            continue
        pool = Uses(graph).sole_user(node.outputs[0])
        if pool is None or not _halves(pool):
            continue
        drop_into(graph, node, pool)
        node.op = "pooled_conv2d"
        changed = True
        user = Uses(graph).sole_user(node.outputs[0])
        epilogue: Epilogue = node.attrs["epilogue"]
        fused = activation_of(user) if user is not None and epilogue.activation == "none" else None
        if user is not None and fused is not None:
            node.attrs["epilogue"] = msgspec.structs.replace(epilogue, **fused)
            drop_into(graph, node, user)
    if changed:
        graph.sort()
        graph.prune_dead()
    return changed


def _shallow(node: Node) -> bool:
    conv: ConvGeometry = node.attrs["conv"]
    epilogue: Epilogue = node.attrs["epilogue"]
    weight: np.ndarray = node.attrs["weight"]
    return (
        conv.stride == (1, 1) == conv.dilation
        and conv.groups == 1
        and conv.in_channels <= _MOST_CHANNELS
        and conv.kernel[0] in TAPS
        and conv.kernel[1] <= _MOST_TAPS
        and not epilogue.residual
        and epilogue.activation in _RISING
        and bool(np.abs(weight).max(initial=0.0) < HUGE_WEIGHT)  # False with NaN
        and summarize(weight).kind == "dense"
    )


def _halves(pool: Node) -> bool:
    attrs = pool.attrs
    return (
        pool.is_op("MaxPool")
        and len(pool.outputs) == 1
        and pool_fits(pool)
        and list(attrs["kernel_shape"]) == [2, 2] == list(attrs.get("strides") or ())
        and not any(attrs.get("pads") or ())
    )
