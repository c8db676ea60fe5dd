"""Keep padded positions out of what mixes positions, exactly.

Before:  Softmax(scores)                    ReduceMean(x)                    MatMul(a, b) over the padded axis
After:   Softmax(scores + lowest)           ReduceSum(x * keep) * share      MatMul(a * keep, b)

`lowest` is 0 for real positions and -inf for padded ones, `keep` 1 and 0, `share` one over the number of real ones.
They are further inputs of the graph (`Graph.padding`), filled at each run. A mask that the model adds already is added
to `lowest` first: attention keeps the form that `fuse_attention` knows, and layers that share a mask share the sum.

Requires: canonical form, as `analysis/symbolic_axis.py` saw it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sparsetvm.analysis.symbolic_axis import Mask
from sparsetvm.core.buckets import MaskInput
from sparsetvm.core.graph import Graph, Node
from sparsetvm.errors import ModelError


def mask_padding(graph: Graph, masks: Sequence[Mask]) -> bool:
    """Insert the masks; returns whether there were any. Raises ModelError when a node is not there at this size."""
    if not masks:
        return False
    nodes = {node.name: node for node in graph.nodes}
    joined: dict[tuple[str, str], str] = {}
    for mask in masks:
        node = nodes.get(mask.node)
        if node is None:
            raise ModelError(
                "the operator is not there in the network for a smaller size", layer=mask.node,
                hint="choose larger --buckets",
            )  # fmt: skip
        if mask.kind == "lowest":
            _add_lowest(graph, node, mask, joined)
        else:
            _multiply(graph, node, mask)
    graph.sort()
    return True


def _padding(graph: Graph, mask: MaskInput, size: int) -> str:
    """The input that holds one mask, shaped to broadcast against a tensor of its rank."""
    for name, known in graph.padding.items():
        if known == mask:
            return name
    value = graph.add_value(f"sparsetvm.{mask.kind}", mask.values(size, size).shape, "float32")
    graph.inputs.append(value.name)
    graph.padding[value.name] = mask
    return value.name


def _insert(graph: Graph, op: str, left: str, right: str, near: Node) -> str:
    """A broadcast node that computes `op` of the two, named after the node that it is for."""
    shape = np.broadcast_shapes(graph.values[left].shape, graph.values[right].shape)
    out = graph.add_value(f"{near.name}.{op.lower()}", shape, "float32")
    graph.nodes.append(Node(out.name, op, [left, right], [out.name], {}, "", near.origin or (near.name,)))
    return out.name


def _add_lowest(graph: Graph, node: Node, mask: Mask, joined: dict[tuple[str, str], str]) -> None:
    scores = node.inputs[mask.input]
    value = graph.values[scores]
    lowest = _padding(graph, MaskInput("lowest", len(value.shape), mask.axis), value.shape[mask.axis])
    add = graph.producers().get(scores)
    users = graph.consumers()[scores]
    if add is not None and add.is_op("Add") and len(users) == 1 and scores not in graph.outputs:
        for at, name in enumerate(add.inputs):
            smaller = graph.values[name].shape != value.shape
            if smaller:
                both = joined.get((name, lowest))
                if both is None:
                    both = joined[name, lowest] = _insert(graph, "Add", name, lowest, node)
                add.inputs[at] = both
                return
    node.inputs[mask.input] = _insert(graph, "Add", scores, lowest, node)


def _multiply(graph: Graph, node: Node, mask: Mask) -> None:
    name = node.inputs[mask.input]
    value = graph.values[name]
    keep = _padding(graph, MaskInput("keep", len(value.shape), mask.axis), value.shape[mask.axis])
    node.inputs[mask.input] = _insert(graph, "Mul", name, keep, node)
    if mask.kind != "mean":
        return
    node.op = "ReduceSum"
    if graph.opset >= 13 and "axes" in node.attrs:  # since then the axes of ReduceSum are an input
        axes = graph.add_constant(f"{node.name}.axes", np.array(node.attrs.pop("axes"), np.int64))
        node.inputs = [node.inputs[0], axes.name]
    out = graph.values[node.outputs[0]]
    total = graph.add_value(f"{node.name}.sum", out.shape, out.dtype)
    node.outputs = [total.name]
    others = [axis for axis in _axes(graph, node, len(value.shape)) if axis != mask.axis]
    share = _padding(graph, MaskInput("share", 0, 0), value.shape[mask.axis])
    factor = share
    if others:  # the mean was also over axes of fixed size
        fixed = float(np.prod([value.shape[axis] for axis in others]))
        scale = graph.add_constant(f"{node.name}.scale", np.array(1.0 / fixed, np.float32))
        factor = _insert(graph, "Mul", share, scale.name, node)
    graph.nodes.append(Node(f"{node.name}.mean", "Mul", [total.name, factor], [out.name], {}, "", node.origin))


def _axes(graph: Graph, node: Node, rank: int) -> list[int]:
    given = node.attrs.get("axes")
    if given is None and len(node.inputs) > 1:
        data = graph.constant(node.inputs[1])
        given = None if data is None else data.reshape(-1).tolist()
    return [int(axis) % rank for axis in given] if given is not None and len(given) else list(range(rank))
