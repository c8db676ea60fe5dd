"""ONNX nodes that stand for one node: what `lower` returns and the importer walks through instead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper

from sparsetvm.core.graph import Value


@dataclass
class Lowered:
    """The node as the importer has it (names are those of the graph), its inputs and, where known, its outputs.

    inputs: None where absent. attrs: as plain Python values.
    """

    node: onnx.NodeProto
    inputs: list[Value | None]
    attrs: dict[str, Any]
    opset: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def x(self) -> str:
        """Name of the first input."""
        return str(self.node.input[0])

    @property
    def y(self) -> str:
        """Name of the first output."""
        return str(self.node.output[0])

    def value(self, at: int) -> Value:
        """Input number `at`, which is there."""
        value = self.inputs[at] if at < len(self.inputs) else None
        if value is None:
            raise ValueError(f"input {at} of {self.node.op_type} is absent")
        return value

    def data(self, at: int) -> np.ndarray | None:
        """The data of a constant input; None when it is absent or computed."""
        value = self.inputs[at] if at < len(self.inputs) else None
        return None if value is None else value.data

    def const(self, array: np.ndarray | Sequence[int] | float) -> str:
        """A constant; Python floats have the type of the first input, sequences of int are int64."""
        data = np.asarray(array, self.value(0).dtype if isinstance(array, float) else None)
        name = f"{self.y}.c{len(self.constants)}"
        self.constants[name] = data
        return name

    def op(self, op: str, *inputs: str, out: str = "", **attrs: Any) -> str:
        """Add a node of one output; `out`: the node's own output, else a new name."""
        name = out or f"{self.y}.{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], **attrs))
        return name

    def reduce(self, op: str, x: str, axes: Sequence[int], out: str = "") -> str:
        """A reduction that keeps its axes, from 18 on an input (ReduceSum: 13)."""
        moved = 13 if op == "ReduceSum" else 18
        if self.opset >= moved:
            return self.op(op, x, self.const(list(axes)), out=out, keepdims=1)
        return self.op(op, x, out=out, axes=list(axes), keepdims=1)
