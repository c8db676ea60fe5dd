"""Fuse the GELU that exporters decompose.

Before:  x * 0.5 * (1 + Erf(x / sqrt(2))), or 0.5 * x * (1 + Tanh(sqrt(2 / pi) * (x + 0.044715 * x^3))), in any order
After:   Gelu(x) {approximate="none"}, or Gelu(x) {approximate="tanh"}
"""

from __future__ import annotations

import math

import numpy as np

from sparsetvm.core.graph import Graph
from sparsetvm.rewrite.canonical.sampled_function import erf, fuse_function


def gelu(x: np.ndarray) -> np.ndarray:
    """x * Phi(x)."""
    result: np.ndarray = 0.5 * x * (1.0 + erf(x / math.sqrt(2.0)))
    return result


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    """The tanh approximation of GELU."""
    result: np.ndarray = 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))
    return result


def fuse_gelu(graph: Graph) -> bool:
    """Fuse both forms; returns whether anything changed."""
    changed = fuse_function(graph, ("Erf",), gelu, "Gelu", {"approximate": "none"})
    return fuse_function(graph, ("Tanh",), gelu_tanh, "Gelu", {"approximate": "tanh"}) or changed
