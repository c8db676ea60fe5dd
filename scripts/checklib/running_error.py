"""How far a float32 evaluation of a network may be from the exact one: a running error analysis, element by element.

Every value of the imported graph gets its float64 value v and a bound e on the error of a float32 computation of it,
in whatever order it sums (N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, 3.1 and 3.3):

    sums of n products   e = |A| eB + eA |B| + eA eB + gamma(n + 1) (|A| + eA)(|B| + eB),  gamma(n) = n u / (1 - n u)
    what is added to one e = ... + gamma(n + 1) |b|, since a kernel may begin its sum with a bias b
    smooth functions     e = slope * eX + what the evaluation of the function itself may be off
    moves of data        e moves along

and to each what underflow loses, an absolute error (2.1 there). Errors of constants are zero. An operator without a
rule raises KeyError: a bound must not be guessed.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from sparsetvm.core.graph import Graph, Node

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from graph_eval import evaluate_node

U = 2.0**-24
# Of the kernels' exp, erf, tanh and sigmoid, absolute, and relative above 1 (schedules/x86/tir.py); twice that, since
# ONNX's decomposed Gelu and Silu are one function there.
_FUNCTION = 2e-6
# Below the smallest normal number float32 loses digits, or all; the kernels' exp ends a little earlier, at exp(-87).
_UNDERFLOW = 2.0**-125

_PRODUCTS = ("Conv", "Gemm", "MatMul")

Pair = tuple[np.ndarray, np.ndarray]


def gamma(n: float) -> float:
    """Relative error of n roundings in a row."""
    return n * U / (1 - n * U)


def running_error(graph: Graph, inputs: dict[str, np.ndarray]) -> dict[str, Pair]:
    """(float64 value, bound on its error) of every value of an imported graph."""
    values: dict[str, Pair] = {}
    for name, value in graph.values.items():
        data = inputs.get(name, value.data)
        if data is not None:
            exact = data.astype(np.float64) if data.dtype.kind == "f" else data
            values[name] = exact, np.zeros(exact.shape)
    for node in graph.nodes:
        pairs = [values[name] if name else None for name in node.inputs]
        operands = [None if pair is None else pair[0] for pair in pairs]
        errors = [None if pair is None else pair[1] for pair in pairs]
        with np.errstate(all="ignore"):
            for name, result, bound in zip(
                node.outputs,
                evaluate_node(node, operands, graph),
                _RULES[node.op](node, operands, errors, graph),
                strict=True,
            ):
                values[name] = result, np.where(np.isnan(bound), math.inf, bound + _UNDERFLOW)
    return values


Arrays = list[np.ndarray | None]
Rule = Callable[[Node, Arrays, Arrays, Graph], Sequence[np.ndarray]]


def _run(node: Node, operands: Arrays, graph: Graph) -> np.ndarray:
    return np.asarray(evaluate_node(node, operands, graph)[0], np.float64)


def _terms(node: Node, left: tuple[int, ...], right: tuple[int, ...]) -> int:
    """How many products each output of a product sums."""
    if node.op == "Conv":
        return math.prod(right[1:])
    return left[0] if node.op == "Gemm" and node.attrs.get("transA", 0) else left[-1]


def _terms_before(name: str, graph: Graph) -> int:
    """Terms of the product whose result, times and plus constants, is the value; 0 when it is no such value."""
    producers = graph.producers()
    while (node := producers.get(name)) is not None:
        if node.op in _PRODUCTS:
            return _terms(node, *(graph.values[operand].shape for operand in node.inputs[:2]))
        computed = [operand for operand in node.inputs if operand and not graph.values[operand].is_constant]
        if node.op not in ("Add", "BatchNormalization", "Div", "Mul", "Sub") or len(computed) != 1:
            return 0
        (name,) = computed
    return 0


def _products(node: Node, x: Arrays, e: Arrays, graph: Graph) -> Sequence[np.ndarray]:
    a, b, ea, eb = np.abs(x[0]), np.abs(x[1]), e[0], e[1]
    terms = _terms(node, a.shape, b.shape)
    bias = [] if len(x) < 3 else [np.abs(x[2])]
    none = [np.zeros_like(array) for array in bias]
    moved = _run(node, [a, eb, *none], graph) + _run(node, [ea, b + eb, *none], graph)
    total = _run(node, [a + ea, b + eb, *bias], graph)
    return [moved + (0.0 if len(e) < 3 else np.max(e[2])) + gamma(terms + 2) * total]


def _add(node: Node, x: Arrays, e: Arrays, graph: Graph) -> Sequence[np.ndarray]:
    first = [
        gamma(_terms_before(other, graph) + 1) * np.abs(data)
        for name, other, data in zip(node.inputs, reversed(node.inputs), x, strict=True)
        if graph.values[name].is_constant
    ]
    return [e[0] + e[1] + U * (np.abs(_run(node, x, graph)) + e[0] + e[1]) + sum(first)]


def _mul(node: Node, x: Arrays, e: Arrays, graph: Graph) -> Sequence[np.ndarray]:
    moved = np.abs(x[0]) * e[1] + e[0] * np.abs(x[1]) + e[0] * e[1]
    return [moved + U * (np.abs(x[0] * x[1]) + moved)]


def _div(node: Node, x: Arrays, e: Arrays, graph: Graph) -> Sequence[np.ndarray]:
    quotient, room = np.abs(x[0] / x[1]), np.abs(x[1]) - e[1]
    moved = np.where(room > 0, (e[0] + quotient * e[1]) / room, math.inf)
    # x * (1 / y) in place of x / y rounds three times.
    return [moved + 3 * U * (quotient + moved)]


def _move(node: Node, x: Arrays, e: Arrays, graph: Graph) -> Sequence[np.ndarray]:
    """The same movement, or the same window's maximum, of the errors; shapes and indices stay what they are."""
    floats = [er if a is not None and a.dtype.kind == "f" else a for a, er in zip(x, e, strict=True)]
    return evaluate_node(node, floats, graph)


def _first(node: Node, x: Arrays, e: Arrays, graph: Graph) -> Sequence[np.ndarray]:
    """Functions of slope 1 that do not round: Relu, Clip."""
    return [e[0]]


def _larger(node: Node, x: Arrays, e: Arrays, graph: Graph) -> Sequence[np.ndarray]:
    """Min and Max of two tensors."""
    return [np.maximum(e[0], e[1])]


def _hard_sigmoid(node: Node, x: Arrays, e: Arrays, graph: Graph) -> Sequence[np.ndarray]:
    """The line may be folded into the layer before: its factor into the weights, its addend to where sums begin."""
    alpha, beta = float(node.attrs.get("alpha", 0.2)), float(node.attrs.get("beta", 0.5))
    line = abs(alpha) * (np.abs(x[0]) + e[0]) + abs(beta)
    return [abs(alpha) * e[0] + gamma(_terms_before(node.inputs[0], graph) + 4) * line]


def _resize(node: Node, x: Arrays, e: Arrays, graph: Graph) -> Sequence[np.ndarray]:
    """Mixes of neighbours with positive weights."""
    mixed = _run(node, [np.abs(x[0]) + e[0], *x[1:]], graph)
    return [_run(node, [e[0], *x[1:]], graph) + gamma(12) * mixed]


def _mean(node: Node, x: Arrays, e: Arrays, graph: Graph) -> Sequence[np.ndarray]:
    total = _run(node, [np.abs(x[0]) + e[0], *x[1:]], graph)
    return [_run(node, [e[0], *x[1:]], graph) + gamma(x[0].size / max(total.size, 1) + 2) * total]


def _batch_norm(node: Node, x: Arrays, e: Arrays, graph: Graph) -> Sequence[np.ndarray]:
    gain, shift, mean, variance = (np.reshape(a, (-1, *[1] * (x[0].ndim - 2))) for a in x[1:5])
    scale = np.abs(gain) / np.sqrt(variance + float(node.attrs.get("epsilon", 1e-5)))
    return [
        scale * e[0]
        + gamma(6 + _terms_before(node.inputs[0], graph))
        * (scale * (np.abs(x[0]) + e[0] + np.abs(mean)) + np.abs(shift))
    ]


def _smooth(slope: float) -> Rule:
    def rule(node: Node, x: Arrays, e: Arrays, graph: Graph) -> Sequence[np.ndarray]:
        return [slope * e[0] + _FUNCTION * np.maximum(1.0, np.abs(_run(node, x, graph)))]

    return rule


def _sqrt(node: Node, x: Arrays, e: Arrays, graph: Graph) -> Sequence[np.ndarray]:
    moved = np.sqrt(x[0]) - np.sqrt(np.maximum(x[0] - e[0], 0.0))
    return [moved + 2 * U * (np.sqrt(x[0]) + moved)]


def _pow(node: Node, x: Arrays, e: Arrays, graph: Graph) -> Sequence[np.ndarray]:
    power = float(x[1].reshape(-1)[0])
    assert power in (2.0, 3.0)
    moved = (np.abs(x[0]) + e[0]) ** power - np.abs(x[0]) ** power
    return [moved + gamma(4) * (np.abs(x[0]) ** power + moved)]


def _softmax(node: Node, x: Arrays, e: Arrays, graph: Graph) -> Sequence[np.ndarray]:
    axis = int(node.attrs.get("axis", -1))
    share = _run(node, x, graph)
    # exp of a value that is off by d is off by the factor exp(d); numerator and denominator both are.
    off = np.expm1(2 * (np.max(e[0], axis=axis, keepdims=True) + U * np.max(np.abs(x[0]), axis=axis, keepdims=True)))
    return [share * (off + (1 + off) * (gamma(x[0].shape[axis] + 4) + 2 * _FUNCTION))]


_RULES: dict[str, Rule] = {
    **dict.fromkeys(_PRODUCTS, _products),
    **dict.fromkeys(["Add", "Sub"], _add),
    "Mul": _mul,
    "Div": _div,
    **dict.fromkeys(["Relu", "Clip"], _first),
    **dict.fromkeys(
        ["Concat", "Flatten", "GlobalMaxPool", "Identity", "MaxPool", "Pad", "Reshape", "Slice", "Transpose"], _move
    ),
    **dict.fromkeys(["AveragePool", "GlobalAveragePool", "ReduceMean"], _mean),
    **dict.fromkeys(["Max", "Min"], _larger),
    "HardSigmoid": _hard_sigmoid,
    "Resize": _resize,
    "BatchNormalization": _batch_norm,
    "Sigmoid": _smooth(0.25),
    "Tanh": _smooth(1.0),
    "Erf": _smooth(1.13),
    "Sqrt": _sqrt,
    "Pow": _pow,
    "Softmax": _softmax,
}
