"""A benchmark case: one layer to be timed, made only when its turn comes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from sparsetvm.core.graph import SPARSETVM_DOMAIN, Graph, Node, Value
from sparsetvm.core.layout import HalfTiled
from sparsetvm.core.target import Target
from sparsetvm.core.task import Task
from sparsetvm.core.workload import ConvGeometry, Epilogue, Workload
from sparsetvm.errors import UsageError
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

    def columns(self, workload: Workload) -> dict[str, Any]:
        """What a row says of its case, whatever was measured: the first keys of docs/json.md."""
        return {
            "suite": self.suite,
            "case": self.name,
            "group": self.group,
            "op": workload.op,
            "m": workload.m,
            "k": workload.k,
            "n": workload.n,
            "sparsity": round(workload.pattern.sparsity, 4),
            "pattern": workload.pattern.describe(),
            "row_imbalance": round(workload.pattern.row_imbalance, 2),
            "dtype": workload.dtype,
        }


def matmul_task(name: str, n: int, weight: Callable[[], np.ndarray], target: Target) -> Task:
    """Y[n, m] = X[n, k] W[m, k]^T without bias, in the layouts that a model with this layer would get.

    It counts as warm, however large: a benchmark runs one layer in a loop.
    """
    matrix = weight()
    m, k = matrix.shape
    return _only_layer(name, "matmul", matrix, None, (n, k), (n, m), target)


def half_task(name: str, n: int, weight: Callable[[], np.ndarray], target: Target) -> Task:
    """`matmul_task` on a GPU with factors, X and Y in float16. Raises UsageError on other targets."""
    if target.kind != "cuda":
        raise UsageError(f"{name}: float16 is for GPUs", hint="use --target cuda")
    task = matmul_task(name, n, weight, target)
    workload, lanes = task.workload, -(-n // 8) * 8
    lin, lout = (HalfTiled(n, size, lanes) for size in (workload.k, workload.m))
    task.workload = msgspec.structs.replace(workload, layout_in=lin, layout_out=lout, tf32=False, fp16=True)
    return task


def conv_task(name: str, conv: ConvGeometry, weight: Callable[[], np.ndarray], target: Target) -> Task:
    """A convolution of one image without bias, in the layouts that a model with this layer would get."""
    matrix = weight()
    x = (1, conv.in_channels, conv.in_height, conv.in_width)
    return _only_layer(name, "conv2d", matrix, conv, x, (1, len(matrix), conv.out_height, conv.out_width), target)


def _only_layer(
    name: str, op: str, weight: np.ndarray, conv: ConvGeometry | None, x: tuple[int, ...], y: tuple[int, ...],
    target: Target,
) -> Task:  # fmt: skip
    attrs = {"weight": weight, "bias": None, "epilogue": Epilogue(), "conv": conv}
    node = Node(name, op, ["x"], ["y"], attrs, SPARSETVM_DOMAIN, (name,))
    values = {"x": Value("x", x, "float32"), "y": Value("y", y, "float32")}
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
