"""Nodes that change nothing once shapes are static: which input stands for their output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sparsetvm.core.graph import Value

_SHAPE_ONLY = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand")
_SINGLE_OPERAND = ("Concat", "Sum", "Max", "Min", "Mean")


def passes_through(
    op: str, inputs: Sequence[Value | None], outputs: Sequence[str], result: Value, attrs: dict[str, Any]
) -> bool:
    """True when the only output of a default-domain node equals its first input."""
    if not inputs or inputs[0] is None or any(outputs[1:]):
        return False
    data = inputs[0]
    if op == "Identity":
        return True
    if op == "Dropout":
        training = inputs[2] if len(inputs) > 2 else None
        is_training = training is not None and (training.data is None or bool(training.data.any()))
        return not is_training
    if result.shape != data.shape or result.dtype != data.dtype:
        return False
    if op in ("Cast", "CastLike") or op in _SHAPE_ONLY:
        return True
    if op == "Transpose":
        perm = attrs.get("perm") or list(range(len(data.shape)))[::-1]
        return list(perm) == list(range(len(data.shape)))
    if op == "Pad":
        pads = inputs[1].data if len(inputs) > 1 and inputs[1] is not None else attrs.get("pads")
        return pads is not None and not any(int(p) for p in pads)
    return op in _SINGLE_OPERAND and len(inputs) == 1
