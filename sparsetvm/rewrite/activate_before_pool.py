"""Move an activation from behind max pooling into the layer in front of it, whose kernel computes it as it stores.

Before:  y = conv2d(x); p = MaxPool(y); o = Relu(p)
After:   y = conv2d(x) {activation relu}; o = MaxPool(y)

The largest of some values stays the largest under a function that never falls. For GPUs, where a kernel of its own
costs a microsecond whatever it does, and four times as many activations in the layer's kernel nothing.
"""

from __future__ import annotations

import msgspec

from sparsetvm.core.graph import SPARSETVM_DOMAIN, Graph, Node
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Epilogue
from sparsetvm.rewrite.assign_layouts import pool_fits
from sparsetvm.rewrite.canonical.edit import Uses, drop_into
from sparsetvm.rewrite.fuse_epilogues import activation_of

_RISING = ("relu", "clip", "sigmoid")


def activate_before_pool(graph: Graph, target: Target) -> bool:
    """Move all that may be moved on a GPU; returns whether anything changed."""
    if target.kind != "cuda":
        return False
    nodes = [node for node in graph.nodes if node.is_op("conv2d", domain=SPARSETVM_DOMAIN)]
    changed = [_move(graph, node) for node in nodes]
    if any(changed):
        graph.sort()
        graph.prune_dead()
    return any(changed)


def _move(graph: Graph, node: Node) -> bool:
    epilogue: Epilogue = node.attrs["epilogue"]
    uses = Uses(graph)
    pool = uses.sole_user(node.outputs[0])
    if epilogue.activation != "none" or pool is None or not pool.is_op("MaxPool"):
        return False
    user = uses.sole_user(pool.outputs[0])
    fused = activation_of(user) if user is not None else None
    if user is None or fused is None or fused["activation"] not in _RISING:
        return False
    if len(pool.outputs) > 1 or not pool_fits(pool):
        return False
    node.attrs["epilogue"] = msgspec.structs.replace(epilogue, **fused)
    drop_into(graph, pool, user)
    return True
