"""Fuse what follows a layer into its epilogue: bias, residual, activation.

Before:  y = matmul(x); z = Add(y, b); r = Add(z, skip); o = Relu(r)
After:   o = matmul(x, skip) {bias=b, epilogue(bias, residual, relu)}

A layer takes at most one residual, before its activation, and one activation; nothing is fused over a value that
someone else reads.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np

from sparsetvm.core.graph import SPARSETVM_DOMAIN, Graph, Node
from sparsetvm.core.workload import Epilogue
from sparsetvm.rewrite.make_layers import LAYER_OPS

_FUSABLE = (*LAYER_OPS, "depthwise_conv2d")
_ACTIVATIONS = {"Relu": "relu", "Sigmoid": "sigmoid"}
_OWN_ACTIVATIONS = {"Silu": "silu", "HardSwish": "hard_swish"}


def fuse_epilogues(graph: Graph) -> bool:
    """Fuse until nothing more fits; returns whether anything changed."""
    changed = False
    while _fuse_one_round(graph):
        changed = True
    if changed:
        graph.sort()
        graph.prune_dead()
    return changed


def _fuse_one_round(graph: Graph) -> bool:
    consumers = graph.consumers()
    position = {id(node): i for i, node in enumerate(graph.nodes)}
    producers = graph.producers()
    for layer in graph.nodes:
        if not layer.is_op(*_FUSABLE, domain=SPARSETVM_DOMAIN):
            continue
        out = layer.outputs[0]
        if len(consumers[out]) != 1 or out in graph.outputs:
            continue
        user = consumers[out][0]
        if _fuse_bias(graph, layer, user) or _fuse_activation(layer, user):
            _absorb(graph, layer, user)
            return True
        skip = _residual_of(graph, layer, user)
        if skip:
            other = producers.get(skip)
            # Of two layers that feed one Add, the later one takes the sum, so that the other is there to be read.
            if other is not None and position[id(other)] > position[id(layer)]:
                continue
            layer.inputs.append(skip)
            layer.attrs["epilogue"] = msgspec.structs.replace(layer.attrs["epilogue"], residual=True)
            _absorb(graph, layer, user)
            return True
    return False


def _absorb(graph: Graph, layer: Node, user: Node) -> None:
    layer.outputs = list(user.outputs)
    layer.origin = (*layer.origin, *(user.origin or (user.name,)))
    # Moved to where `user` stood: everything that it read is computed by then.
    graph.nodes.remove(layer)
    graph.nodes[graph.nodes.index(user)] = layer


def _fuse_bias(graph: Graph, layer: Node, user: Node) -> bool:
    epilogue: Epilogue = layer.attrs["epilogue"]
    if not user.is_op("Add") or epilogue.residual or epilogue.activation != "none":
        return False
    other = user.inputs[1] if user.inputs[0] == layer.outputs[0] else user.inputs[0]
    addend = graph.constant(other)
    if addend is None or graph.values[user.outputs[0]].shape != graph.values[layer.outputs[0]].shape:
        return False
    features = layer.attrs["weight"].shape[0]
    vector = _per_feature(addend, features, layer.op)
    if vector is None:
        return False
    bias = layer.attrs["bias"]
    layer.attrs["bias"] = vector if bias is None else bias + vector
    layer.attrs["epilogue"] = msgspec.structs.replace(epilogue, bias=True)
    return True


def _per_feature(addend: np.ndarray, features: int, op: str) -> np.ndarray | None:
    """`addend` as an (m,) vector when it broadcasts over everything but the feature axis."""
    if addend.size == 1:
        return np.full(features, np.float32(addend.reshape(-1)[0]), np.float32)
    feature_axis = -1 if op == "matmul" else -3
    if addend.ndim < -feature_axis or addend.shape[feature_axis] != features or math.prod(addend.shape) != features:
        return None
    flat: np.ndarray = addend.reshape(features).astype(np.float32)
    return flat


def _fuse_activation(layer: Node, user: Node) -> bool:
    epilogue: Epilogue = layer.attrs["epilogue"]
    if epilogue.activation != "none":
        return False
    fused = activation_of(user)
    if fused is None:
        return False
    layer.attrs["epilogue"] = msgspec.structs.replace(epilogue, **fused)
    return True


def activation_of(node: Node) -> dict[str, Any] | None:
    """Epilogue fields of an activation node, None when it is none that kernels know."""
    if node.domain == "" and node.op in _ACTIVATIONS:
        return {"activation": _ACTIVATIONS[node.op]}
    if node.is_op("Gelu"):
        approximate = node.attrs.get("approximate", "none")
        return {"activation": "gelu_tanh" if approximate == "tanh" else "gelu"}
    if node.is_op(*_OWN_ACTIVATIONS, domain=SPARSETVM_DOMAIN):
        return {"activation": _OWN_ACTIVATIONS[node.op]}
    if node.is_op("Clip", domain=SPARSETVM_DOMAIN):
        return {"activation": "clip", "low": float(node.attrs["low"]), "high": float(node.attrs["high"])}
    return None


def _residual_of(graph: Graph, layer: Node, user: Node) -> str:
    """Name of the other operand when `user` adds a computed tensor of the same shape, else ""."""
    epilogue: Epilogue = layer.attrs["epilogue"]
    if not user.is_op("Add") or epilogue.residual or epilogue.activation != "none":
        return ""
    out = layer.outputs[0]
    other = user.inputs[1] if user.inputs[0] == out else user.inputs[0]
    if other == out or graph.values[other].is_constant:
        return ""
    return other if graph.values[other].shape == graph.values[out].shape else ""
