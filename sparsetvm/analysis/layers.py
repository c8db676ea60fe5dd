"""What `inspect` says about a constant-weight layer: how it is pruned, what that can gain, whether it stays dense."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sparsetvm.analysis.limits import limit_of
from sparsetvm.analysis.rest_time import rest_time
from sparsetvm.analysis.roofline import WORTH_IT, best_time, break_even_sparsity, dense_time, expected_speedup
from sparsetvm.analysis.structure import find_structure
from sparsetvm.core.graph import SPARSETVM_DOMAIN, Graph
from sparsetvm.core.pattern import PatternSummary
from sparsetvm.core.results import LayerReport
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload


def inspect_layers(graph: Graph, workloads: Mapping[str, Workload], target: Target) -> list[LayerReport]:
    """One report per layer node that has a workload, in the graph's order; workloads are keyed by node name."""
    nodes = (node for node in graph.nodes if node.domain == SPARSETVM_DOMAIN and node.name in workloads)
    reports = [inspect_layer(node.name, workloads[node.name], target, node.attrs.get("weight")) for node in nodes]
    whole = sum(dense_time(workloads[report.name], target) for report in reports)
    for report in reports:
        report.share = dense_time(workloads[report.name], target) / whole
    first: dict[str, str] = {}
    for report in reports:
        pattern = workloads[report.name].pattern
        if pattern.kind != "dense" and first.setdefault(pattern.digest, report.name) != report.name:
            report.same_positions = first[pattern.digest]
            report.shares_kernel = workloads[report.name] == workloads[report.same_positions]
    return reports


def expected_of_model(
    graph: Graph, workloads: Mapping[str, Workload], target: Target
) -> tuple[float | None, float | None]:
    """Expected speed-up over dense kernels of (the whole model, its layers alone); None for a model without layers.

    Other operators do not get faster; how long they take is a rough model (rest_time.py).
    """
    if not workloads:
        return None, None
    dense, best = (
        graph.chunks * sum(cost(workload, target) for workload in workloads.values())
        for cost in (dense_time, best_time)
    )
    rest = rest_time(graph, target)
    return (dense + rest) / (best + rest), dense / best


def inspect_layer(name: str, workload: Workload, target: Target, weight: np.ndarray | None = None) -> LayerReport:
    """Report of one layer. The expected speed-up of a layer that stays dense is 1.

    weight: the (m, k) weight; without it nothing is said about structure beyond the workload's pattern.
    """
    pattern = workload.pattern
    speedup, limit = expected_speedup(workload, target), ""
    if pattern.kind == "dense":
        sparse, reason = False, f"stays dense: {_not_pruned(pattern.sparsity)}"
    elif speedup < WORTH_IT:
        sparse, reason = False, f"stays dense: {_percent(pattern.sparsity)} sparse, {_break_even(workload, target)}"
    else:
        sparse = True
        limit = limit_of(workload, target)
        reason = f"sparse: {_percent(pattern.sparsity)} {pattern.describe()}, {speedup:.1f}x expected"
    return LayerReport(
        name=name,
        op=workload.op,
        shape=workload.describe(),
        sparsity=pattern.sparsity,
        pattern=pattern.describe(),
        row_imbalance=pattern.row_imbalance,
        empty_rows=pattern.empty_rows,
        nnz=workload.nnz,
        expected_speedup=speedup if sparse else 1.0,
        verdict="sparse" if sparse else "dense",
        reason=reason,
        limit=limit,
        structure=beyond_pattern(workload.pattern, weight) if weight is not None else "",
    )


def beyond_pattern(pattern: PatternSummary, weight: np.ndarray) -> str:
    """What the structure of an (m, k) weight is where its pattern, which kernels are chosen by, says less; else ""."""
    if pattern.kind not in ("unstructured", "block"):
        return ""
    found = find_structure(weight)
    if found.kind in ("dense", "unstructured"):
        return ""
    same = found.block == pattern.block and found.row_permutation is None and found.column_permutation is None
    return "" if same and found.kind == "block" else found.explain()


def _not_pruned(sparsity: float) -> str:
    return f"only {_percent(sparsity)} of its weights are zero" if sparsity > 0 else "it is not pruned"


def _break_even(workload: Workload, target: Target) -> str:
    point = break_even_sparsity(workload, target)
    rounds = workload.tf32 or workload.fp16 or workload.bf16 is True
    winner = "tensor cores win, " if rounds else ""
    return f"{winner}break-even here is about {_percent(point)}" if point < 1 else "too small to gain at any sparsity"


def why_dense(workload: Workload, target: Target, *, tensor_cores: bool) -> str:
    """What to say of a pruned layer whose dense kernel was measured to be the fastest; it used `tensor_cores` or not.

    The sparsity that would be needed is the roofline's, and left out where the roofline had expected a gain.
    """
    sparsity, point = workload.pattern.sparsity, break_even_sparsity(workload, target)
    needed = f"; about {_percent(point)} would be needed" if sparsity < point < 1 else ""
    return f"n={workload.n} at {_percent(sparsity)}: {'tensor cores win' if tensor_cores else 'dense wins'}{needed}"


def _percent(share: float) -> str:
    """Whole percent; a tenth where rounding would say 0 or 100 of something in between."""
    rounded = round(100 * share)
    text = f"{100 * share:.1f}" if rounded in (0, 100) and 0 < share < 1 else str(rounded)
    return f"{text} %"
