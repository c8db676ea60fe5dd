"""Run passes on a small model and compare its outputs with onnxruntime's on the original file."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from graph_eval import evaluate
from models import ModelBuilder, random_inputs, relative_error, run_onnxruntime

from sparsetvm.core.graph import Graph, Node
from sparsetvm.frontend.load import load_model


def rewritten(builder: ModelBuilder, *passes: Callable[[Graph], bool], expect_change: bool | None = True) -> Graph:
    """The model after `passes`. Checks: same outputs, change reported truly, a second run changes nothing."""
    model = builder.model()
    with tempfile.TemporaryDirectory() as folder:
        graph = load_model(builder.save(Path(folder) / "m.onnx")).graph
    inputs = random_inputs(model)
    expected = run_onnxruntime(model, inputs)
    changes = [run(graph) for run in passes]
    assert expect_change is None or any(changes) == expect_change
    check_structure(graph)
    found = evaluate(graph, inputs)
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert relative_error(found[name], array) < 2e-6
    assert not passes[-1](graph)
    return graph


def check_structure(graph: Graph) -> None:
    """Topological order, every value known, origins given, no value without a reader or producer."""
    ready = {name for name, value in graph.values.items() if value.is_constant} | set(graph.inputs)
    for node in graph.nodes:
        assert all(name in ready for name in node.inputs if name), node.name
        assert node.origin, node.name
        ready.update(node.outputs)
    assert set(graph.outputs) <= ready
    assert len({node.name for node in graph.nodes}) == len(graph.nodes)
    assert all(name in graph.values for node in graph.nodes for name in (*node.inputs, *node.outputs) if name)


def ops(graph: Graph) -> list[str]:
    return [node.op for node in graph.nodes]


def find(graph: Graph, op: str) -> Node:
    """The only node of this operator."""
    found = [node for node in graph.nodes if node.op == op]
    assert len(found) == 1, ops(graph)
    return found[0]
