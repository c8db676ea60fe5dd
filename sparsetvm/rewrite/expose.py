"""Make values of a rewritten graph its outputs, as they lie in memory.

Before:  conv2d -> conv2d -> y {outputs: y}
After:   conv2d -> conv2d -> y {outputs: y, a, b}, a and b the physical arrays of what the layers computed

No node is added that computes anything and no layout changes: the kernels stay those of the model.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from sparsetvm.core.graph import SPARSETVM_DOMAIN, Graph, Node, Value
from sparsetvm.core.layout import Plain


def expose(graph: Graph, names: Iterable[str]) -> dict[str, str]:
    """Add outputs for computed values, after `assign_layouts`; returns value name -> name of its output."""
    outputs: dict[str, str] = {}
    for name in dict.fromkeys(names):
        value = graph.values[name]
        physical = graph.add_value(f"{name}.exposed", value.layout.physical_shape(value.shape), value.stored)
        # Right behind the node that computes it, which may run more often than later ones.
        behind = 1 + next(at for at, node in enumerate(graph.nodes) if name in node.outputs)
        graph.nodes.insert(behind, Node(physical.name, "alias", [name], [physical.name], {}, SPARSETVM_DOMAIN))
        graph.outputs.append(physical.name)
        graph.output_names.append(physical.name)
        outputs[name] = physical.name
    return outputs


def logical(value: Value, physical: np.ndarray, chunks: int) -> np.ndarray:
    """The array of an exposed value as ONNX knows it, all chunks of the batch (`Graph.runs`) in one."""
    layout = value.layout
    if isinstance(layout, Plain):
        return physical
    parts = [layout.to_logical(part.astype(value.dtype), value.shape) for part in np.split(physical, chunks)]
    return parts[0] if chunks == 1 else np.concatenate(parts)
