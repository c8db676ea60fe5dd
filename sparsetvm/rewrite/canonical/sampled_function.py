"""Recognise a function of one variable, however it is written, by its values at sample points.

Exporters write GELU and SiLU in a dozen ways (constants left or right, the half at any of four places). Instead of one
pattern for each, the expression between two values is evaluated in float64 and compared with the known function. Only
analytic operators, clamps and scalar constants are followed, so that agreement at the samples means equality: a clamp
bends the function at a place that the pieces on both sides of it give away.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sparsetvm.core.graph import SPARSETVM_DOMAIN, Graph, Node
from sparsetvm.rewrite.canonical.edit import Uses, rewrite_node, scalar

Function = Callable[[np.ndarray], np.ndarray]

_SAMPLES = np.concatenate([np.linspace(-9.0, 9.0, 181), [-30.0, -1e-3, 1e-3, 30.0]])
# Constants are stored as float32, some of them with few digits. The constants of a float16 model are rounded: those of
# GELU bend it by up to 2.6e-5, where the SiLU of the next float16 beside 1.0 differs from SiLU by 1.1e-4.
_TOLERANCE, _TOLERANCE_FLOAT16 = 2e-6, 5e-5
_MAX_STEPS = 10
_MAX_SOURCES = 12


def erf(x: np.ndarray) -> np.ndarray:
    """The error function; SciPy takes a quarter of a second to import, so only where it is met."""
    from scipy.special import erf as scipy_erf

    return np.asarray(scipy_erf(x))


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + e^-x), in a form that cannot overflow."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * x)))


_UNARY: dict[str, Function] = {
    "Erf": erf,
    "Tanh": np.tanh,
    "Sigmoid": sigmoid,
    "Exp": np.exp,
    "Neg": np.negative,
    "Reciprocal": np.reciprocal,
    "Identity": np.positive,
}
_BINARY: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
    "Pow": np.power,
}


def fuse_function(
    graph: Graph, anchors: tuple[str, ...], function: Function, op: str, attrs: dict[str, object], *, domain: str = ""
) -> bool:
    """Replace every expression through one of the `anchors` that computes `function` by the node `op`."""
    changed = False
    found_anchors = [node for node in graph.nodes if node.is_op(*anchors) or (_is_clip(node) and "Clip" in anchors)]
    if not found_anchors:
        return False
    expected = function(_SAMPLES)
    for anchor in found_anchors:
        found = _find(graph, anchor, expected)
        if found is None:
            continue
        root, source, inside = found
        rewrite_node(root, op, [source], attrs, domain=domain, replaces=inside)
        graph.prune_dead()
        changed = True
    return changed


def _find(graph: Graph, anchor: Node, expected: np.ndarray) -> tuple[Node, str, list[Node]] | None:
    """(root, source, nodes between them): the smallest expression around `anchor` with the expected values."""
    uses = Uses(graph)
    sources = _sources(graph, uses, anchor)
    root = anchor
    for _ in range(_MAX_STEPS):
        user = uses.sole_user(root.outputs[0])
        if user is None or not _is_followed(user):
            return None
        root = user
        for source in sources:
            if graph.values[source].shape != graph.values[root.outputs[0]].shape:
                continue
            expression = _Expression(graph, uses, source)
            values = expression.evaluate(root.outputs[0])
            tolerance = _TOLERANCE_FLOAT16 if graph.float16 else _TOLERANCE
            if values is not None and _equal(values, expected, tolerance):
                return root, source, expression.nodes
    return None


def _is_followed(node: Node) -> bool:
    return _is_clip(node) or (not node.domain and (node.op in _UNARY or node.op in _BINARY))


def _sources(graph: Graph, uses: Uses, anchor: Node) -> list[str]:
    """Values that the anchor is computed from, nearest first."""
    found: list[str] = []
    level = list(anchor.inputs)
    while level and len(found) < _MAX_SOURCES:
        following: list[str] = []
        for name in level:
            if name and name not in found and not graph.values[name].is_constant:
                found.append(name)
                node = uses.producer(name)
                following.extend(node.inputs if node is not None and _is_followed(node) else [])
        level = following
    return found[:_MAX_SOURCES]


class _Expression:
    """Values at the samples of everything that depends on `source` alone."""

    def __init__(self, graph: Graph, uses: Uses, source: str) -> None:
        self.nodes: list[Node] = []
        self._graph = graph
        self._uses = uses
        self._known: dict[str, np.ndarray | None] = {source: _SAMPLES}

    def evaluate(self, name: str, depth: int = 0) -> np.ndarray | None:
        """`name` as a function of the source; None when it depends on anything else."""
        if name not in self._known:
            self._known[name] = self._compute(name, depth)
        return self._known[name]

    def _compute(self, name: str, depth: int) -> np.ndarray | None:
        constant = scalar(self._graph, name)
        if constant is not None:
            return np.full_like(_SAMPLES, constant)
        node = self._uses.producer(name)
        if node is None or not _is_followed(node) or depth > 2 * _MAX_STEPS:
            return None
        operands = []
        for operand in node.inputs:
            values = self.evaluate(operand, depth + 1)
            if values is None:
                return None
            operands.append(values)
        self.nodes.append(node)
        with np.errstate(all="ignore"):
            return _applied(node, operands)


def _applied(node: Node, operands: list[np.ndarray]) -> np.ndarray | None:
    if _is_clip(node):
        return np.asarray(np.clip(operands[0], node.attrs["low"], node.attrs["high"]))
    if len(operands) == 1 and node.op in _UNARY:
        return _UNARY[node.op](operands[0])
    if len(operands) == 2 and node.op in _BINARY:
        return _BINARY[node.op](operands[0], operands[1])
    return None


def _is_clip(node: Node) -> bool:
    return node.is_op("Clip", domain=SPARSETVM_DOMAIN)


def _equal(found: np.ndarray, expected: np.ndarray, tolerance: float) -> bool:
    error = np.abs(found - expected)
    return bool(np.all(error <= tolerance * np.maximum(1.0, np.abs(_SAMPLES))))
