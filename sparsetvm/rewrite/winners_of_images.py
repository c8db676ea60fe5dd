"""Let k-winners read and write images, so that nothing is moved into plain rows and back.

Before:  r = Reshape(x, (N, C*H*W)); w = k_winners(r); y = Reshape(w, (N, C, H, W))
After:   y = k_winners(x) {axis=1}

`axis`: a row of a k_winners node is everything from there on, the last axis without it.
"""

from __future__ import annotations

import math

import numpy as np

from sparsetvm.core.graph import SPARSETVM_DOMAIN, Graph, Node
from sparsetvm.rewrite.canonical.edit import Uses

_RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


def winners_of_images(graph: Graph) -> bool:
    """Change all that choose from a reshaped image batch; returns whether anything changed."""
    uses = Uses(graph)
    nodes = [node for node in graph.nodes if node.is_op("k_winners", domain=SPARSETVM_DOMAIN)]
    changed = [_choose_from_image(graph, uses, node) for node in nodes]
    if any(changed):
        graph.sort()
        graph.prune_dead()
    return any(changed)


def _choose_from_image(graph: Graph, uses: Uses, node: Node) -> bool:
    reshape = uses.producer(node.inputs[0], *_RESHAPES)
    if reshape is None:
        return False
    image, rows = graph.values[reshape.inputs[0]], graph.values[node.outputs[0]]
    if len(image.shape) != 4 or image.shape[0] != math.prod(rows.shape[:-1]) or len(rows.shape) == 4:
        return False
    node.inputs = [image.name]
    node.attrs["axis"] = 1
    chosen = graph.add_value(f"{rows.name}.image", image.shape, image.dtype)
    node.outputs = [chosen.name]
    for user in [user for user in graph.nodes if rows.name in user.inputs]:
        out = user.outputs[0]
        if user.is_op(*_RESHAPES) and graph.values[out].shape == image.shape and out not in graph.outputs:
            for reader in graph.nodes:
                reader.inputs = [chosen.name if name == out else name for name in reader.inputs]
    shape = graph.add_constant(f"{rows.name}.shape", np.array(rows.shape, np.int64))
    graph.nodes.append(Node(f"{rows.name}.rows", "Reshape", [chosen.name, shape.name], [rows.name], origin=node.origin))
    return True
