"""Which share of a layer's input is not zero on sample inputs.

The model is compiled with default configs, the inputs of those layers exposed that have a schedule for it, and run.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sparsetvm.build.compile import compile_networks
from sparsetvm.build.network import LayerChoice, Network
from sparsetvm.core.graph import Graph
from sparsetvm.core.results import Event, Progress
from sparsetvm.core.target import Target
from sparsetvm.errors import UsageError, did_you_mean
from sparsetvm.frontend.names import display_name
from sparsetvm.rewrite.activation_density import uses_density
from sparsetvm.rewrite.expose import expose, logical
from sparsetvm.rewrite.prepare import prepare
from sparsetvm.rewrite.prepare_buckets import Family, share_tasks
from sparsetvm.rewrite.workloads import layer_nodes, make_tasks
from sparsetvm.runtime.module import Module
from sparsetvm.search.candidates import candidates_of

_RANDOM_SAMPLES = 8
_HINT = "give every input an array of its shape, or of samples of its shape: (samples, *shape)"


def calibrate_family(
    family: Family,
    target: Target,
    shapes: Mapping[str, tuple[int, ...]] | None,
    inputs: Mapping[str, Any] | None,
    tell: Progress,
) -> None:
    """Give the tasks of the model the densities that `measure_densities` finds.

    With buckets they are those of the smallest, whose kernels skip the most; arrays may have any size in the open
    dimension and are cut. Raises UsageError where positions depend on each other, so that no slice stands for all.
    """
    if family.sizes and not family.splits:
        raise UsageError(
            f"--calibrate: slices of dimension '{display_name(family.dimension)}' cannot run by themselves",
            hint="fix its size with --shape to calibrate",
        )
    if family.sizes:
        smallest = family.members[0].graph
        shapes = {name: smallest.model_shape(name) for name in smallest.inputs}
        inputs = None if inputs is None else _cut(inputs, shapes, family.axes)
    densities = measure_densities(family.largest.path, target, shapes, inputs)
    found = ", ".join(f"{name} {density:.0%}" for name, density in densities.items())
    tell(Event(kind="note", message=f"non-zeros in the inputs of layers: {found or 'no layer has a use for them'}"))
    for member in family.members:
        member.tasks = make_tasks(member.graph, target, densities)
    if family.sizes:
        share_tasks(family)


def _cut(
    inputs: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], axes: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """Arrays of more of the open dimension as samples of the bucket; a rest that fills none is left out."""
    cut: dict[str, np.ndarray] = {}
    for name, given in inputs.items():
        array = np.asarray(given)
        known = name or next(iter(shapes))  # the array of the only input may have no name
        shape, axis = shapes.get(known, ()), axes.get(known)
        if axis is not None and array.ndim == len(shape) and array.shape[axis] > shape[axis]:
            count = array.shape[axis] // shape[axis]
            array = np.stack(np.split(array.take(range(count * shape[axis]), axis), count, axis))
        cut[name] = array
    return cut


def measure_densities(
    model: Path,
    target: Target,
    shapes: Mapping[str, tuple[int, ...]] | None,
    inputs: Mapping[str, Any] | None,
    seed: int = 0,
) -> dict[str, float]:
    """Layer name -> non-zeros of its input by its size, over all samples; only layers that have a use for it.

    inputs: name -> array of the input's shape, or (samples, *shape); None for random ones. Raises UsageError when they
    do not fit, or when the model cannot run here.
    """
    if not target.host:
        raise UsageError(f"--calibrate: a model for {target} cannot run here", hint="calibrate on the machine itself")
    prepared = prepare(model, target, shapes)
    graph = prepared.graph
    samples = None if inputs is None else _samples(graph, inputs)
    read = {
        node.name: node.inputs[0]
        for node in layer_nodes(graph)
        if uses_density(prepared.tasks[node.name].workload, target)
    }
    if not read:
        return {}
    outputs = expose(graph, (name for name in read.values() if name not in graph.inputs))
    choices = {
        name: LayerChoice(candidates_of(task.workload, target).default, "default")
        for name, task in prepared.tasks.items()
    }
    counts = dict.fromkeys(read, 0.0)
    with tempfile.TemporaryDirectory(prefix="sparsetvm-calibrate-") as folder:
        library = Path(folder) / "model.so"
        networks = [Network(graph, prepared.tasks, choices)]
        compile_networks(networks, target, library, {"name": model.name, "sha256": prepared.digest})
        with Module(library, threads=target.threads) as module:
            if samples is None:
                samples = [module.random_inputs(seed + number) for number in range(_RANDOM_SAMPLES)]
            for sample in samples:
                found = module.run(sample)
                for layer, name in read.items():
                    value = sample[name] if name in sample else _logical(graph, name, found[outputs[name]])
                    counts[layer] += np.count_nonzero(value) / max(1, value.size)
    return {layer: count / len(samples) for layer, count in counts.items()}


def _logical(graph: Graph, name: str, physical: np.ndarray) -> np.ndarray:
    return logical(graph.values[name], physical, graph.runs(name))


def _samples(graph: Graph, inputs: Mapping[str, Any]) -> list[dict[str, np.ndarray]]:
    """One feed per sample. A single array named "" is that of the only input."""
    if set(inputs) == {""} and len(graph.inputs) == 1:
        inputs = {graph.inputs[0]: inputs[""]}
    for name in inputs:
        if name not in graph.inputs:
            raise UsageError(f"--calibrate: the model has no input '{name}'{did_you_mean(name, graph.inputs)}")
    found: dict[str, np.ndarray] = {}
    for name in graph.inputs:
        if name not in inputs:
            raise UsageError(f"--calibrate: no array for the input '{name}'", hint=_HINT)
        array, shape = np.asarray(inputs[name]), graph.model_shape(name)
        if array.shape == shape:
            array = array[None]
        if array.shape[1:] != shape or not len(array):
            raise UsageError(f"--calibrate: '{name}' has shape {array.shape}, not {shape} or samples of it", hint=_HINT)
        found[name] = np.ascontiguousarray(array, graph.values[name].dtype)
    sizes = {name: len(array) for name, array in found.items()}
    if len(set(sizes.values())) > 1:
        raise UsageError(f"--calibrate: inputs have different numbers of samples: {sizes}", hint=_HINT)
    return [{name: array[i] for name, array in found.items()} for i in range(next(iter(sizes.values())))]
