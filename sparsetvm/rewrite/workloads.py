"""The workload of a layer node."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from sparsetvm.analysis.patterns import summarize
from sparsetvm.core.graph import SPARSETVM_DOMAIN, Graph, Node
from sparsetvm.core.layout import Plain
from sparsetvm.core.target import Target
from sparsetvm.core.task import Task
from sparsetvm.core.workload import Workload
from sparsetvm.rewrite.activation_density import exact_density, with_density
from sparsetvm.rewrite.make_layers import LAYER_OPS

_LOOKUP_BYTES = 6  # a value and its column id, with padding
_CODE_BYTES = 12  # a value and the instruction that uses it
_DATA_BYTES = 8  # a value and an offset


def layer_nodes(graph: Graph) -> list[Node]:
    """Nodes that have schedule templates, in execution order."""
    return [node for node in graph.nodes if node.is_op(*LAYER_OPS, domain=SPARSETVM_DOMAIN)]


def workload_of(graph: Graph, node: Node, target: Target) -> Workload:
    """Workload of a layer node; layouts are those assigned to its input and output."""
    weight = node.attrs["weight"]
    out = graph.values[node.outputs[0]]
    m, k = weight.shape
    n = math.prod(out.shape) // m
    residual = graph.values[node.inputs[1]].layout if len(node.inputs) > 1 else out.layout
    conv = node.attrs["conv"]
    # Products of few tokens are bound by their weights: they have no kernel that rounds, and their records serve both.
    many = not isinstance(graph.values[node.inputs[0]].layout, Plain)
    product = target.kind == "cuda" and many and (conv is None or conv.pointwise)
    return Workload(
        node.op,  # type: ignore[arg-type]
        m,
        k,
        n,
        graph.values[node.inputs[0]].layout,
        out.layout,
        node.attrs["epilogue"],
        summarize(weight),
        conv,
        threads=target.threads,
        layout_residual=None if residual == out.layout else residual,
        tf32=target.tf32 and many,
        fp16=product and (target.fp16 or graph.float16),
        bf16=True if product and target.bf16 else msgspec.UNSET,
    )


def _resident_bytes(workload: Workload, target: Target) -> int:
    """Bytes of weights, and of indices or code, that one inference reads for the layer."""
    if workload.pattern.kind == "dense":
        return 4 * workload.m * workload.k
    if isinstance(workload.layout_in, Plain):
        per_weight = _LOOKUP_BYTES
    else:
        per_weight = _DATA_BYTES if target.kind == "cuda" else _CODE_BYTES
    return per_weight * workload.nnz


def make_tasks(graph: Graph, target: Target, densities: Mapping[str, float] | None = None) -> dict[str, Task]:
    """Layer name -> task; layers with equal workloads (pattern digest included) share one task.

    densities: layer name -> measured share of non-zeros of its input, where there is one. The graph may know better.
    """
    measured, producers = densities or {}, graph.producers()
    tasks: dict[str, Task] = {}
    by_id: dict[str, Task] = {}
    workloads = {node.name: workload_of(graph, node, target) for node in layer_nodes(graph)}
    cold = sum(_resident_bytes(workload, target) for workload in workloads.values()) > target.l2
    for node in layer_nodes(graph):
        workload = msgspec.structs.replace(workloads[node.name], cold=cold)
        exact = exact_density(graph, node.inputs[0], producers)
        known = [density for density in (exact, measured.get(node.name)) if density is not None]
        workload = with_density(workload, target, min(known, default=None))
        task = by_id.get(workload.id)
        if task is None:
            task = Task(node.name, workload, node.attrs["weight"], node.attrs["bias"])
            by_id[workload.id] = task
        task.layers.append(node.name)
        tasks[node.name] = task
    return tasks
