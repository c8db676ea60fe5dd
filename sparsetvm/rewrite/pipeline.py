"""The rewrite passes, in the order in which they run."""

from __future__ import annotations

from collections.abc import Sequence

from sparsetvm.analysis.symbolic_axis import Mask
from sparsetvm.core.graph import Graph
from sparsetvm.core.target import Target
from sparsetvm.rewrite.activate_before_pool import activate_before_pool
from sparsetvm.rewrite.assign_layouts import assign_layouts
from sparsetvm.rewrite.canonical import canonicalize
from sparsetvm.rewrite.fuse_attention import fuse_attention
from sparsetvm.rewrite.fuse_channel_affine import fuse_channel_affine
from sparsetvm.rewrite.fuse_epilogues import fuse_epilogues
from sparsetvm.rewrite.fuse_k_winners import fuse_k_winners
from sparsetvm.rewrite.fuse_masked_softmax import fuse_masked_softmax
from sparsetvm.rewrite.fuse_max_pool import fuse_max_pool
from sparsetvm.rewrite.gather_channels import gather_channels
from sparsetvm.rewrite.make_layers import make_layers
from sparsetvm.rewrite.mask_padding import mask_padding
from sparsetvm.rewrite.move_reshapes import move_reshapes
from sparsetvm.rewrite.remove_dead_channels import remove_dead_channels
from sparsetvm.rewrite.reveal_blocks import reveal_blocks
from sparsetvm.rewrite.split_batch import split_batch
from sparsetvm.rewrite.split_products import split_products
from sparsetvm.rewrite.split_strided_pointwise import split_strided_pointwise
from sparsetvm.rewrite.widen_float16 import widen_float16
from sparsetvm.rewrite.winners_of_images import winners_of_images


def rewrite(graph: Graph, target: Target, masks: Sequence[Mask] = ()) -> Graph:
    """Bring an imported graph to layers, fused epilogues and assigned layouts; changes and returns `graph`.

    masks: where positions that were filled up must not count.
    """
    widen_float16(graph)
    canonicalize(graph)
    mask_padding(graph, masks)
    fuse_attention(graph, target)
    fuse_masked_softmax(graph)
    fuse_k_winners(graph)
    winners_of_images(graph)
    make_layers(graph)
    move_reshapes(graph)
    remove_dead_channels(graph)
    reveal_blocks(graph, target.kind)
    fuse_epilogues(graph)
    if split_products(graph):
        fuse_epilogues(graph)
    fuse_max_pool(graph, target)
    activate_before_pool(graph, target)
    split_strided_pointwise(graph)
    if target.kind == "cpu":
        split_batch(graph, target)
    fuse_channel_affine(graph)
    gather_channels(graph, affine=target.kind == "cuda")
    assign_layouts(graph, target)
    return graph
