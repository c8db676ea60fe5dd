"""A benchmark case: one layer to be timed, made only when its turn comes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import numpy as np

from sparsetvm.core.graph import SPARSETVM_DOMAIN, Graph, Node, Value
from sparsetvm.core.target import Target
from sparsetvm.core.task import Task
from sparsetvm.core.workload import Epilogue
from sparsetvm.rewrite.assign_layouts import assign_layouts
from sparsetvm.rewrite.workloads import make_tasks

MakeTask = Callable[[Target], Task]


@dataclass(frozen=True)
class Case:
    """One row of a benchmark.

    group: what the summary averages over, e.g. "n=128,s=0.90". n, sparsity: as asked for, to choose cases by. task:
    makes the layer. twin: makes the same layer with a random pattern of equal density, timed beside it.
    """

    suite: str
    name: str
    group: str
    n: int
    sparsity: float
    task: MakeTask
    twin: MakeTask | None = None


def matmul_task(name: str, n: int, weight: Callable[[], np.ndarray], target: Target) -> Task:
    """Y[n, m] = X[n, k] W[m, k]^T without bias, in the layouts that a model with this layer would get.

    It counts as warm, however large: a benchmark runs one layer in a loop.
    """
    matrix = weight()
    m, k = matrix.shape
    attrs = {"weight": matrix, "bias": None, "epilogue": Epilogue(), "conv": None}
    node = Node(name, "matmul", ["x"], ["y"], attrs, SPARSETVM_DOMAIN, (name,))
    values = {"x": Value("x", (n, k), "float32"), "y": Value("y", (n, m), "float32")}
    graph = Graph(name, 17, [node], values, ["x"], ["y"])
    assign_layouts(graph, target)
    task = make_tasks(graph, target)[name]
    task.workload = msgspec.structs.replace(task.workload, cold=False)
    return task


def even_sample(cases: list[Case], limit: int | None) -> list[Case]:
    """At most `limit` of the cases, evenly spread, the first and the last among them."""
    if limit is None or limit >= len(cases):
        return cases
    if limit == 1:
        return cases[:1]
    return [cases[round(i * (len(cases) - 1) / (limit - 1))] for i in range(limit)]
