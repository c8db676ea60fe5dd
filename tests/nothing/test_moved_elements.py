"""Where elements come from: what the passes that follow them cannot see in the networks they are tested with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from models import ModelBuilder

from sparsetvm.frontend.load import load_model
from sparsetvm.rewrite.canonical.edit import Uses
from sparsetvm.rewrite.moved_elements import moved_from, moved_to


def test_transpose_that_does_not_fit_its_input_moves_nothing(tmp_path: Path) -> None:
    builder = ModelBuilder()
    builder.output(builder.op("Transpose", builder.input("x", (2, 3, 4)), perm=[2, 0, 1]))
    graph = load_model(builder.save(tmp_path / "m.onnx")).graph
    node = next(node for node in graph.nodes if node.op == "Transpose")
    moved = moved_from(graph, Uses(graph), node.outputs[0])
    assert moved is not None
    assert moved.elements.shape == (4, 2, 3)
    node.attrs["perm"] = [1, 0]
    assert moved_from(graph, Uses(graph), node.outputs[0]) is None
    assert moved_to(graph, Uses(graph), node.inputs[0], np.arange(24)) is None
