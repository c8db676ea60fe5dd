"""A whole network through the emulator: every launch that `build` would put into the library, in the same order."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from models import run_onnxruntime
from sparsetvm.schedules.base import template
from sparsetvm.schedules.cuda.launch import Launch

from emulator.run import run_launch
from sparsetvm.build.remainder import remainder_kernel
from sparsetvm.core.config import Config
from sparsetvm.core.graph import SPARSETVM_DOMAIN, Graph, Node
from sparsetvm.core.target import Target
from sparsetvm.core.task import Task
from sparsetvm.frontend.to_onnx import single_node_model
from sparsetvm.rewrite.make_layers import LAYER_OPS


def run_network(
    graph: Graph,
    tasks: Mapping[str, Task],
    configs: Mapping[str, Config],
    target: Target,
    inputs: dict[str, np.ndarray],
) -> tuple[list[np.ndarray], int]:
    """Outputs of the rewritten graph, and how many of its nodes were launches. Outputs start as NaN."""
    values: dict[str, np.ndarray] = dict(inputs)
    launches = 0
    for node in graph.nodes:
        given = [values[name] if name in values else graph.constant(name) for name in node.inputs if name]
        if node.is_op("alias", domain=SPARSETVM_DOMAIN):
            values[node.outputs[0]] = given[0]
            continue
        found = _launch(graph, node, tasks, configs, target)
        if found is None:
            names = [name for name in dict.fromkeys(node.inputs) if name in values]
            values |= run_onnxruntime(single_node_model(node, graph), {name: values[name] for name in names})
            continue
        launch, names, constants = found
        out = graph.values[node.outputs[0]]
        result = np.full(out.layout.physical_shape(out.shape), np.nan, out.stored)
        arguments = [values[name] if name in values else graph.constant(name) for name in names]
        run_launch(launch, [*map(np.array, arguments), *map(np.array, constants), result])
        values[out.name] = result
        launches += 1
    return [values[name] for name in graph.outputs], launches


def _launch(
    graph: Graph, node: Node, tasks: Mapping[str, Task], configs: Mapping[str, Config], target: Target
) -> tuple[Launch, list[str], list[np.ndarray]] | None:
    if not node.is_op(*LAYER_OPS, domain=SPARSETVM_DOMAIN):
        kernel = remainder_kernel(graph, node, target)
        return None if kernel is None else (kernel.build("emulated"), kernel.inputs, kernel.constants)
    task, config = tasks[node.name], configs[node.name]
    chosen = template(config.template)
    packed = chosen.pack(node.attrs["weight"], node.attrs["bias"], task.workload, config, target)
    return chosen.kernel(task.workload, config, packed, target, "emulated"), node.inputs, list(packed.arrays)
