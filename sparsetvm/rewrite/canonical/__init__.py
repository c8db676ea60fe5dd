"""Canonicalisation: bring the many ways in which exporters write a network to the few that later passes know."""

from __future__ import annotations

from collections.abc import Callable

from sparsetvm.core.graph import Graph
from sparsetvm.rewrite.canonical.drop_dead_taps import drop_dead_taps
from sparsetvm.rewrite.canonical.drop_trivial_transposes import drop_trivial_transposes
from sparsetvm.rewrite.canonical.fold_add_into_bias import fold_add_into_bias
from sparsetvm.rewrite.canonical.fold_batch_norm import fold_batch_norm
from sparsetvm.rewrite.canonical.fold_scale_into_weights import fold_scale_into_weights
from sparsetvm.rewrite.canonical.fuse_gelu import fuse_gelu
from sparsetvm.rewrite.canonical.fuse_hard_swish import fuse_hard_swish
from sparsetvm.rewrite.canonical.fuse_layer_norm import fuse_layer_norm
from sparsetvm.rewrite.canonical.fuse_rms_norm import fuse_rms_norm
from sparsetvm.rewrite.canonical.fuse_silu import fuse_silu
from sparsetvm.rewrite.canonical.lower_hard_sigmoid import lower_hard_sigmoid
from sparsetvm.rewrite.canonical.make_pads_explicit import make_pads_explicit
from sparsetvm.rewrite.canonical.merge_affine import merge_affine
from sparsetvm.rewrite.canonical.merge_pad_into_conv import merge_pad_into_conv
from sparsetvm.rewrite.canonical.merge_reshapes import merge_reshapes
from sparsetvm.rewrite.canonical.move_scale_before_clip import move_scale_before_clip
from sparsetvm.rewrite.canonical.move_scale_before_transpose import move_scale_before_transpose
from sparsetvm.rewrite.canonical.normalize_clip import normalize_clip
from sparsetvm.rewrite.canonical.remove_transpose_pairs import remove_transpose_pairs
from sparsetvm.rewrite.canonical.split_sum import split_sum
from sparsetvm.rewrite.canonical.use_global_average_pool import use_global_average_pool

CanonicalPass = Callable[[Graph], bool]

CANONICAL_PASSES: tuple[CanonicalPass, ...] = (
    make_pads_explicit,
    split_sum,
    fuse_layer_norm,
    fuse_rms_norm,
    fuse_gelu,
    fuse_silu,
    normalize_clip,
    lower_hard_sigmoid,
    fuse_hard_swish,
    move_scale_before_clip,
    move_scale_before_transpose,
    merge_pad_into_conv,
    drop_dead_taps,
    fold_batch_norm,
    fold_add_into_bias,
    fold_scale_into_weights,
    merge_affine,
    remove_transpose_pairs,
    drop_trivial_transposes,
    merge_reshapes,
    use_global_average_pool,
)

# Each round strictly simplifies the graph; the bound only guards against two passes undoing each other.
_MAX_ROUNDS = 20


def canonicalize(graph: Graph) -> bool:
    """Run all passes, in order, until none changes the graph; returns whether anything changed."""
    changed = False
    for _ in range(_MAX_ROUNDS):
        results = [run(graph) for run in CANONICAL_PASSES]
        if not any(results):
            break
        changed = True
    graph.sort()
    return changed
