"""Div and Mod of integers without the two divisions that end the process: by zero, and of the smallest number by -1.

ONNX Runtime raises an error for the first and crashes at the second. Here what is divided by zero is 0, as processors
without such a trap have it, and division by -1 negates, within the type.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import relax

from sparsetvm.core.graph import Graph, Node


def may_trap(node: Node, graph: Graph) -> bool:
    """Whether the divisor of an integer division may be 0 or -1."""
    if not node.is_op("Div", "Mod") or np.dtype(graph.values[node.outputs[0]].dtype).kind not in "iu":
        return False
    divisor = graph.constant(node.inputs[1])
    return divisor is None or bool(np.isin(divisor, _special(str(divisor.dtype))).any())


def emit_division(
    builder: Any, node: Node, graph: Graph, expr: Callable[[str], Any], divide: Callable[..., Any]
) -> Any:
    """The quotient or remainder. divide: (divisor) -> the expression of the node with that one."""
    dtype = graph.values[node.inputs[1]].dtype
    dividend, divisor = (expr(name) for name in node.inputs)
    zero, one = (relax.const(np.array(number, dtype), dtype) for number in (0, 1))
    special = [builder.emit(relax.op.equal(divisor, relax.const(np.array(n, dtype), dtype))) for n in _special(dtype)]
    safe = divisor
    for found in special:
        safe = builder.emit(relax.op.where(found, one, safe))
    result = builder.emit(relax.op.where(special[0], zero, divide(safe)))
    if len(special) == 1:
        return result
    negated = zero if node.op == "Mod" else builder.emit(relax.op.subtract(zero, dividend))
    return builder.emit(relax.op.where(special[1], negated, result))


def _special(dtype: str) -> tuple[int, ...]:
    return (0,) if np.dtype(dtype).kind == "u" else (0, -1)
