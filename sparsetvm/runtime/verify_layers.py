"""Every layer of a compiled model beside ONNX Runtime.

The library shows its outputs only. So the model is compiled once more with the configs of the manifest, the inputs and
outputs of all layers exposed; that its outputs equal the library's, bit by bit, says that these are the same kernels.
Each layer is then compared twice:

- alone: ONNX Runtime computes the layer on the inputs that ours had; the distance has a proven bound (layer_bound.py).
- in the model: its output beside the value of the same name in the ONNX model, with all errors before it. This finds
  the rewrite that went wrong where each kernel does what it is told. A value that the model does not have in this
  form (channels that were removed, a transposed product) has no such error.

A fused layer is compared at the output of the last operator in it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from sparsetvm.build.compile import compile_networks
from sparsetvm.build.network import LayerChoice, Network
from sparsetvm.core.arithmetic import Arithmetic
from sparsetvm.core.config import Config
from sparsetvm.core.graph import SPARSETVM_DOMAIN, Graph, Node
from sparsetvm.core.results import LayerError
from sparsetvm.errors import EnvironmentProblem, SparseTvmError, UsageError
from sparsetvm.rewrite.expose import expose, logical
from sparsetvm.rewrite.make_layers import LAYER_OPS
from sparsetvm.rewrite.prepare import Prepared, prepare
from sparsetvm.runtime.difference import Difference
from sparsetvm.runtime.layer_bound import LayerReference, Session, worst
from sparsetvm.runtime.minimal_bound import MinimalReference, PooledReference
from sparsetvm.runtime.module import Module

_LAYERS = (*LAYER_OPS, "depthwise_conv2d", "pooled_conv2d")


@dataclass
class _Exposed:
    """What a layer read and wrote: names of values of the graph."""

    node: Node
    x: str
    residual: str
    y: str
    arithmetic: Arithmetic


def verify_layers(
    module: Module, reference: Path, *, samples: int, tolerance: float, seed: int
) -> tuple[list[LayerError], bool]:
    """(the worst errors of each layer over `samples` random inputs, whether the outputs equal the module's).

    tolerance: on the relative L2 error beside the model's value. Raises UsageError when `reference` is not the model of
    `module`, or the library has no manifest.
    """
    prepared, choices = _as_compiled(module, reference)
    graph = prepared.graph
    layers = _layers(graph, choices)
    final = dict(zip(graph.output_names, graph.outputs, strict=True))
    names = [name for layer in layers for name in (layer.x, layer.residual, layer.y) if name]
    outputs = expose(graph, (name for name in names if name not in graph.inputs))
    target = module.built_for
    if target is None:
        raise SparseTvmError("the manifest names no target")
    with tempfile.TemporaryDirectory(prefix="sparsetvm-layers-") as folder:
        library = Path(folder) / "layers.so"
        networks = [Network(graph, prepared.tasks, choices)]
        compile_networks(networks, target, library, {"name": prepared.path.name})
        with Module(library, threads=module.threads) as twin:
            model = _ModelValues(reference, module.threads, {layer.y for layer in layers})
            references = [_reference(layer, graph, choices, model.open) for layer in layers]
            report: dict[str, LayerError] = {}
            beside: dict[str, Difference] = {}
            same = True
            for sample in range(samples):
                inputs = module.random_inputs(seed + sample)
                found = twin.run(inputs)
                ours = module.run(inputs)
                same &= all(np.array_equal(ours[name], found[name], equal_nan=True) for name in final)
                values = {
                    name: logical(graph.values[name], found[out], graph.runs(name)) for name, out in outputs.items()
                }
                theirs = model.run(inputs)
                for layer, expected in zip(layers, references, strict=True):
                    error = _compare(layer, expected, {**inputs, **values})
                    known = report.get(error.name)
                    report[error.name] = error if known is None or error.of_bound > known.of_bound else known
                    y = theirs.get(layer.y)
                    if y is not None and y.shape == values[layer.y].shape:
                        beside.setdefault(error.name, Difference()).add(values[layer.y], y)
    for name, difference in beside.items():
        report[name].model_error = difference.relative
    return _blamed(list(report.values()), tolerance), same


def _reference(
    layer: _Exposed, graph: Graph, choices: Mapping[str, LayerChoice], open_session: Session
) -> LayerReference:
    if layer.node.op == "pooled_conv2d":
        return PooledReference(layer.node, open_session)
    choice = choices.get(layer.node.name)
    if choice is not None and choice.config.template in ("x86.dense_minimal", "x86.dense_winograd"):
        return MinimalReference(layer.node, open_session)
    return LayerReference(layer.node, layer.arithmetic, open_session, graph.values[layer.y].layout.half)


def _blamed(layers: list[LayerError], tolerance: float) -> list[LayerError]:
    """Set `passed`: an error in the model is held against the first layer that has it, not against those behind it."""
    wrong = False
    for layer in layers:
        within = layer.model_error is None or layer.model_error <= tolerance
        layer.passed = layer.of_bound <= 1.0 and (within or wrong)
        wrong |= not layer.passed
    return layers


def _as_compiled(module: Module, reference: Path) -> tuple[Prepared, dict[str, LayerChoice]]:
    """The rewritten model, and the choice of each layer as the manifest has it."""
    target = module.built_for
    if target is None:
        raise UsageError(
            f"'{module.path}' has no manifest, which says how each layer was compiled", hint="compile the model again"
        )
    if module.dynamic is not None:
        raise UsageError(
            f"--per-layer: '{module.path}' has a network for each of its buckets",
            hint="compile the model with --shape for one size, and verify that",
        )
    prepared = prepare(reference, target, {info.name: info.shape for info in module.inputs})
    recorded = {str(layer["name"]): layer for layer in module.manifest.get("layers", [])}
    if module.manifest.get("model", {}).get("sha256") != prepared.digest or recorded.keys() != prepared.tasks.keys():
        raise UsageError(
            f"'{reference}' is not the model that '{module.path}' was compiled from, or another version compiled it",
            hint="compile it again with this version, then verify",
        )
    choices = {
        name: LayerChoice(Config.parse(str(layer["config"])), str(layer["source"])) for name, layer in recorded.items()
    }
    return prepared, choices


def _layers(graph: Graph, choices: Mapping[str, LayerChoice]) -> list[_Exposed]:
    """Layers with the values that they read and wrote, before any conversion of layouts."""
    producers = graph.producers()

    def source(name: str) -> str:
        while (node := producers.get(name)) is not None and node.is_op("convert", "alias", domain=SPARSETVM_DOMAIN):
            if graph.values[node.inputs[0]].shape != graph.values[name].shape:
                break
            name = node.inputs[0]
        return name

    found = []
    for node in graph.nodes:
        if node.is_op(*_LAYERS, domain=SPARSETVM_DOMAIN):
            residual = source(node.inputs[1]) if len(node.inputs) > 1 else ""
            arithmetic: Arithmetic = choices[node.name].arithmetic if node.name in choices else "float32"
            found.append(_Exposed(node, source(node.inputs[0]), residual, node.outputs[0], arithmetic))
    return found


def _compare(layer: _Exposed, reference: LayerReference, values: Mapping[str, np.ndarray]) -> LayerError:
    residual = values[layer.residual] if layer.residual else None
    ratio, error, limit = worst(values[layer.y], *reference(values[layer.x], residual))
    return LayerError(
        name=layer.node.name,
        op=layer.node.op,
        terms=reference.terms,
        arithmetic=layer.arithmetic,
        of_bound=ratio,
        abs_error=error,
        bound=limit,
        model_error=None,
        passed=False,
    )


class _ModelValues:
    """ONNX Runtime on the model, with values inside it as further outputs."""

    def __init__(self, path: Path, threads: int, wanted: set[str]) -> None:
        self._folder, self._threads = path.parent.resolve(), threads
        model = onnx.load(path, load_external_data=False)
        outputs = {info.name for info in model.graph.output}
        inner = [name for node in model.graph.node for name in node.output if name in wanted and name not in outputs]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(inner))
        self._session = self.open(model.SerializeToString())

    def open(self, model: bytes) -> Any:
        """A session of a serialised model, whose external data lies where that of the model does."""
        try:
            import onnxruntime
        except ImportError as error:
            raise EnvironmentProblem("onnxruntime is not installed", hint="pip install onnxruntime") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self._threads, 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(self._folder))
        try:
            return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise EnvironmentProblem(f"ONNX Runtime cannot load the model: {error}", hint="check the file") from error

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = [output.name for output in self._session.get_outputs()]
        return dict(zip(names, self._session.run(None, dict(inputs)), strict=True))
