"""The graph between the ONNX file and the kernels: static shapes, constants as arrays, ONNX names kept.

The frontend makes a `Graph` of ONNX operators; the rewrite passes replace parts of it with fused operators of the
domain "sparsetvm"; `build` emits each node as a kernel call or hands it to TVM's ONNX importer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sparsetvm.core.buckets import MaskInput
from sparsetvm.core.layout import PLAIN, AnyLayout

SPARSETVM_DOMAIN = "sparsetvm"


@dataclass
class Value:
    """A tensor: static shape, numpy dtype name, constant data when known, and the layout it is stored in."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    data: np.ndarray | None = None
    layout: AnyLayout = PLAIN

    @property
    def is_constant(self) -> bool:
        return self.data is not None

    @property
    def stored(self) -> str:
        """Type of its elements in memory: `dtype`, unless the layout stores it in float16."""
        return "float16" if self.layout.half else self.dtype


@dataclass
class Node:
    """One operator. `attrs` holds plain Python values (int, float, str, list, np.ndarray); "" marks an absent input.

    `origin` lists the names of the ONNX nodes this node stands for, the node that carries the weight first.
    """

    name: str
    op: str
    inputs: list[str]
    outputs: list[str]
    attrs: dict[str, Any] = field(default_factory=dict)
    domain: str = ""
    origin: tuple[str, ...] = ()

    def is_op(self, *ops: str, domain: str = "") -> bool:
        """True when the node is one of `ops` of the given domain ("" is the default ONNX domain)."""
        return self.domain == domain and self.op in ops


@dataclass(frozen=True)
class IntegerInput:
    """What is known of the values of an integer or bool input (analysis/integer_inputs.py).

    range: the smallest and largest value that the model admits, None where that is not known or no limit.
    random_below: random draws are from 0 to random_below - 1, None where nothing but zero should be drawn.
    """

    range: tuple[int, int] | None = None
    random_below: int | None = None


@dataclass
class Graph:
    """Nodes in topological order, every value by name; `inputs` and `outputs` in the model's order.

    `output_names` are the names that users know: passes may put a conversion behind an output. A model runs its nodes
    `chunks` times, on equal slices of dimension 0 of its inputs; shapes are those of one slice. A node "gather" of the
    domain "sparsetvm" makes one tensor of the results of `count` runs of all nodes before it: those behind it run fewer
    times, on larger slices. `float16`: the file has the model in float16, and other runtimes round as that says.
    `notes`: what passes did that the user should know, one sentence each. `padding`: inputs that are not the model's
    but say which positions are real. `integers`: what is known of integer inputs, from before the passes.
    """

    name: str
    opset: int
    nodes: list[Node]
    values: dict[str, Value]
    inputs: list[str]
    outputs: list[str]
    output_names: list[str] = field(default_factory=list)
    chunks: int = 1
    float16: bool = False
    notes: list[str] = field(default_factory=list)
    padding: dict[str, MaskInput] = field(default_factory=dict)
    integers: dict[str, IntegerInput] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.output_names = self.output_names or list(self.outputs)

    def constant(self, name: str) -> np.ndarray | None:
        """The data of a constant value, None when `name` is "" or is computed."""
        return self.values[name].data if name else None

    def model_shape(self, name: str) -> tuple[int, ...]:
        """Shape of an input or output of the whole model."""
        shape, runs = self.values[name].shape, self.runs(name)
        return (shape[0] * runs, *shape[1:]) if runs > 1 else shape

    def parts(self) -> list[list[Node]]:
        """The nodes cut where they run fewer times: every part but the first begins with "gather" nodes."""
        parts: list[list[Node]] = [[]]
        gathering = False
        for node in self.nodes:
            before, gathering = gathering, node.is_op("gather", domain=SPARSETVM_DOMAIN)
            if gathering and not before:
                parts.append([])
            parts[-1].append(node)
        return parts

    def part_runs(self) -> list[tuple[list[Node], int]]:
        """The parts, and how many slices of dimension 0 each runs in."""
        runs, found = self.chunks, []
        for part in self.parts():
            if part and part[0].is_op("gather", domain=SPARSETVM_DOMAIN):
                runs //= int(part[0].attrs["count"])
            found.append((part, runs))
        return found

    def runs(self, name: str) -> int:
        """How many slices of dimension 0 a value is computed in."""
        if name in self.inputs or self.chunks == 1:
            return self.chunks
        own = (runs for part, runs in self.part_runs() if any(name in node.outputs for node in part))
        return next(own, self.chunks)

    def node_runs(self) -> dict[str, int]:
        """How often each node runs in one inference, by name."""
        return {node.name: runs for part, runs in self.part_runs() for node in part}

    @property
    def slices(self) -> int:
        """How many slices of dimension 0 the last part runs in: what each of them does together needs that many."""
        return self.part_runs()[-1][1]

    def producers(self) -> dict[str, Node]:
        """Value name -> the node that computes it."""
        return {out: node for node in self.nodes for out in node.outputs if out}

    def consumers(self) -> dict[str, list[Node]]:
        """Value name -> the nodes that read it (a node appears once per reading input)."""
        users: dict[str, list[Node]] = {name: [] for name in self.values}
        for node in self.nodes:
            for name in node.inputs:
                if name:
                    users[name].append(node)
        return users

    def add_value(self, stem: str, shape: tuple[int, ...], dtype: str, data: np.ndarray | None = None) -> Value:
        """Add a value with a fresh name derived from `stem`."""
        name, count = stem, 0
        while name in self.values:
            count += 1
            name = f"{stem}.{count}"
        value = Value(name, tuple(int(d) for d in shape), dtype, data)
        self.values[name] = value
        return value

    def add_constant(self, stem: str, data: np.ndarray) -> Value:
        """Add a constant value with a fresh name derived from `stem`."""
        return self.add_value(stem, data.shape, str(data.dtype), data)

    def prune_dead(self) -> None:
        """Drop nodes whose outputs nobody reads, and values nobody mentions."""
        alive = set(self.outputs)
        kept: list[Node] = []
        for node in reversed(self.nodes):
            if any(out in alive for out in node.outputs):
                alive.update(name for name in node.inputs if name)
                kept.append(node)
        self.nodes = kept[::-1]
        mentioned = alive | set(self.inputs) | {out for node in self.nodes for out in node.outputs}
        self.values = {name: value for name, value in self.values.items() if name in mentioned}

    def sort(self) -> None:
        """Restore topological order after a pass appended nodes; stable."""
        ready = {name for name, value in self.values.items() if value.is_constant} | set(self.inputs) | {""}
        pending, ordered = list(self.nodes), []
        while pending:
            rest = []
            for node in pending:
                if all(name in ready for name in node.inputs):
                    ready.update(node.outputs)
                    ordered.append(node)
                else:
                    rest.append(node)
            if len(rest) == len(pending):
                raise ValueError(f"the graph has a cycle through '{rest[0].name}'")
            pending = rest
        self.nodes = ordered

    def walk(self) -> Iterator[tuple[Node, list[Value | None], list[Value]]]:
        """Nodes with their input values (None where absent) and output values."""
        for node in self.nodes:
            yield (
                node,
                [self.values[i] if i else None for i in node.inputs],
                [self.values[o] for o in node.outputs if o],
            )
