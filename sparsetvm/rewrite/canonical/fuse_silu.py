"""Fuse SiLU (swish).

Before:  Mul(x, Sigmoid(x)), or x / (1 + Exp(-x))
After:   sparsetvm.Silu(x)
"""

from __future__ import annotations

import numpy as np

from sparsetvm.core.graph import SPARSETVM_DOMAIN, Graph
from sparsetvm.rewrite.canonical.sampled_function import fuse_function, sigmoid


def silu(x: np.ndarray) -> np.ndarray:
    """x * sigmoid(x)."""
    result: np.ndarray = x * sigmoid(x)
    return result


def fuse_silu(graph: Graph) -> bool:
    """Fuse every SiLU; returns whether anything changed."""
    return fuse_function(graph, ("Sigmoid", "Exp"), silu, "Silu", {}, domain=SPARSETVM_DOMAIN)
