"""What stands in a manifest beside the library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from sparsetvm.analysis.integer_inputs import merged
from sparsetvm.build.network import LayerChoice, Network, Opened
from sparsetvm.core.arithmetic import network_tolerance
from sparsetvm.core.graph import Graph, IntegerInput
from sparsetvm.core.manifest import FLOAT16_TOLERANCE, MANIFEST_SCHEMA, sha256_of
from sparsetvm.core.target import Target, toolchain_fingerprint
from sparsetvm.core.task import Task


def manifest_content(
    networks: Sequence[Network],
    kernels: list[dict[str, str]],
    target: Target,
    library: Path,
    model: dict[str, str],
    opened: Opened | None = None,
) -> dict[str, Any]:
    """The whole manifest. Inputs and outputs have the largest bucket's size in the dimension that stays open."""
    versions = toolchain_fingerprint()
    graph = networks[-1].graph
    choices = [choice for network in networks for choice in network.choices.values()]
    axes = opened.axes if opened else {}
    integers = merged([network.graph.integers for network in networks])
    content = {
        "schema": MANIFEST_SCHEMA,
        "sparsetvm": versions.sparsetvm,
        "tvm": versions.tvm,
        "model": {**model, "arithmetic": "float16" if graph.float16 else "float32"},
        "library_sha256": sha256_of(library),
        "target": msgspec.to_builtins(target),
        "threads": target.threads,
        "inputs": [
            {**_tensor(graph, name, name, axes), **_known(integers.get(name))}
            for name in graph.inputs
            if name not in graph.padding
        ],
        "outputs": [
            _tensor(graph, name, public, axes) for name, public in zip(graph.outputs, graph.output_names, strict=True)
        ],
        "layers": _layers(networks, opened),
        "kernels": kernels,
        "tolerances": {"rel_l2_error": _tolerance(graph, choices)},
    }
    return {**content, "dynamic": msgspec.to_builtins(opened.dynamic)} if opened else content


def _layers(networks: Sequence[Network], opened: Opened | None) -> list[dict[str, Any]]:
    """Every layer, in a model with buckets once for each and with its bucket."""
    found = []
    for at, network in enumerate(networks):
        bucket = {"bucket": opened.dynamic.buckets[at]} if opened else {}
        found += [{**_layer(name, network.tasks[name], choice), **bucket} for name, choice in network.choices.items()]
    return found


def _tolerance(graph: Graph, choices: Sequence[LayerChoice]) -> float:
    """Largest relative L2 error that verify accepts."""
    of_layers = network_tolerance([choice.arithmetic for choice in choices])
    return max(of_layers, FLOAT16_TOLERANCE) if graph.float16 else of_layers


def _tensor(graph: Graph, name: str, public: str, axes: Mapping[str, int]) -> dict[str, Any]:
    value = graph.values[name]
    info = {"name": public, "shape": graph.model_shape(name), "dtype": value.dtype}
    return {**info, "axis": axes[public]} if public in axes else info


def _known(integer: IntegerInput | None) -> dict[str, Any]:
    """What is known of the values of an input."""
    if integer is None:
        return {}
    found = {"range": integer.range, "random_below": integer.random_below}
    return {name: value for name, value in found.items() if value is not None}


def _layer(name: str, task: Task, choice: LayerChoice) -> dict[str, Any]:
    speedup = choice.dense_us / choice.best_us if choice.dense_us and choice.best_us else None
    return {
        "name": name,
        "workload": task.workload.describe(),
        "workload_id": task.workload.id,
        "pattern": task.workload.pattern.describe(),
        "sparsity": round(task.workload.pattern.sparsity, 6),
        "config": str(choice.config),
        "arithmetic": choice.arithmetic,
        "source": choice.source,
        "why": choice.why,
        "best_us": choice.best_us,
        "dense_us": choice.dense_us,
        "speedup": speedup,
    }
