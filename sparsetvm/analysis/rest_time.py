"""How long everything that is no layer takes: pools, depthwise convolutions, attention, norms, conversions.

A rough model, in the units of `roofline.dense_time`, for forecasts of whole networks: every operator reads its inputs
and writes its outputs once; depthwise convolutions and attention also pay for their products and exponentials.
"""

from __future__ import annotations

import math

from sparsetvm.analysis.gpu_roofline import node_us
from sparsetvm.analysis.roofline import stream_cycles
from sparsetvm.core.graph import SPARSETVM_DOMAIN, Graph, Node
from sparsetvm.core.target import Target
from sparsetvm.core.workload import ConvGeometry
from sparsetvm.frontend.names import words

_FREE = words("Flatten Identity Reshape Squeeze Unsqueeze")
_FUNCTIONS = words(
    "Elu Erf Exp Gelu HardSigmoid Log Mish Pow Selu Sigmoid Silu Softmax Softplus Sqrt Tanh masked_softmax"
)
_POINTS = 0.4  # products of a pooled convolution, by those of its windows
_FUNCTION_CYCLES = 20.0  # per vector of such a function
_LAYERS = ("matmul", "conv2d")


def rest_time(graph: Graph, target: Target) -> float:
    """Cycles of one core, microseconds of a GPU; for all chunks of the model."""
    rest = [node for node in graph.nodes if not node.is_op(*_LAYERS, domain=SPARSETVM_DOMAIN) and node.op not in _FREE]
    if target.kind == "cuda":
        return sum(node_us(_moved(graph, node)) for node in rest)
    return sum(
        graph.runs(node.outputs[0]) * (stream_cycles(_moved(graph, node)) + _vectors(graph, node) / target.lanes)
        for node in rest
    )


def _moved(graph: Graph, node: Node) -> float:
    """Bytes read and written; constants are small."""
    names = [name for name in (*node.inputs, *node.outputs) if name and graph.values[name].data is None]
    return 4.0 * sum(math.prod(graph.values[name].shape) for name in names)


def _vectors(graph: Graph, node: Node) -> float:
    """Cycles of a vector of one lane."""
    out = graph.values[node.outputs[0]].shape
    size = float(math.prod(out))
    if node.is_op("depthwise_conv2d", domain=SPARSETVM_DOMAIN):
        conv: ConvGeometry = node.attrs["conv"]
        return size * math.prod(conv.kernel)
    if node.is_op("pooled_conv2d", domain=SPARSETVM_DOMAIN):
        return 4.0 * _POINTS * size * float(node.attrs["weight"].shape[1])
    if node.is_op("attention", domain=SPARSETVM_DOMAIN):
        keys = graph.values[node.inputs[1]].shape[-2]
        tokens = math.prod(out[:-1])
        heads: int = node.attrs["heads"]
        return 2.0 * size * keys + _FUNCTION_CYCLES * heads * tokens * keys
    if node.is_op("MatMul"):
        return size * graph.values[node.inputs[0]].shape[-1]
    return _FUNCTION_CYCLES * size if node.op in _FUNCTIONS else 0.0
