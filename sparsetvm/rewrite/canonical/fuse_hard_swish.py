"""Fuse hard swish, the activation of MobileNetV3.

Before:  Mul(x, HardSigmoid(x)), x * Clip(x + 3, 0, 6) / 6, or ONNX's HardSwish(x)
After:   sparsetvm.HardSwish(x) = x * clip(x / 6 + 1 / 2, 0, 1)
"""

from __future__ import annotations

import numpy as np

from sparsetvm.core.graph import SPARSETVM_DOMAIN, Graph
from sparsetvm.rewrite.canonical.edit import rewrite_node
from sparsetvm.rewrite.canonical.sampled_function import fuse_function


def hard_swish(x: np.ndarray) -> np.ndarray:
    """x * clip(x / 6 + 1 / 2, 0, 1)."""
    result: np.ndarray = x * np.clip(x / 6.0 + 0.5, 0.0, 1.0)
    return result


def fuse_hard_swish(graph: Graph) -> bool:
    """Fuse every hard swish of float32; returns whether anything changed."""
    changed = False
    for node in graph.nodes:
        if node.is_op("HardSwish") and graph.values[node.outputs[0]].dtype == "float32":
            rewrite_node(node, "HardSwish", node.inputs, {}, domain=SPARSETVM_DOMAIN)
            changed = True
    return fuse_function(graph, ("Clip",), hard_swish, "HardSwish", {}, domain=SPARSETVM_DOMAIN) or changed
