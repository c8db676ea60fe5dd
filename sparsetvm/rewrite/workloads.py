"""The workload of a layer node."""

from __future__ import annotations

import math

from sparsetvm.analysis.patterns import summarize
from sparsetvm.core.graph import SPARSETVM_DOMAIN, Graph, Node
from sparsetvm.core.target import Target
from sparsetvm.core.task import Task
from sparsetvm.core.workload import Workload
from sparsetvm.rewrite.make_layers import LAYER_OPS


def layer_nodes(graph: Graph) -> list[Node]:
    """Nodes that have schedule templates, in execution order."""
    return [node for node in graph.nodes if node.is_op(*LAYER_OPS, domain=SPARSETVM_DOMAIN)]


def workload_of(graph: Graph, node: Node, target: Target) -> Workload:
    """Workload of a layer node; layouts are those assigned to its input and output."""
    weight = node.attrs["weight"]
    out = graph.values[node.outputs[0]]
    m, k = weight.shape
    n = math.prod(out.shape) // m
    return Workload(
        node.op,  # type: ignore[arg-type]
        m,
        k,
        n,
        graph.values[node.inputs[0]].layout,
        out.layout,
        node.attrs["epilogue"],
        summarize(weight),
        node.attrs["conv"],
        threads=target.threads,
    )


def make_tasks(graph: Graph, target: Target) -> dict[str, Task]:
    """Layer name -> task; layers with equal workloads (pattern digest included) share one task."""
    tasks: dict[str, Task] = {}
    by_id: dict[str, Task] = {}
    for node in layer_nodes(graph):
        workload = workload_of(graph, node, target)
        task = by_id.get(workload.id)
        if task is None:
            task = Task(node.name, workload, node.attrs["weight"], node.attrs["bias"])
            by_id[workload.id] = task
        task.layers.append(node.name)
        tasks[node.name] = task
    return tasks
