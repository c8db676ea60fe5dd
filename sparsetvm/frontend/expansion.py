"""How large functions make a model: a few hundred bytes of them that call each other twice make billions of nodes.

Known from XML as the billion laughs. Looked at before anything is inlined.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx

from sparsetvm.errors import ModelError
from sparsetvm.frontend.names import display_name

MAX_NODES = 1_000_000
MAX_DEPTH = 100  # functions in functions; the inliner recurses

Key = tuple[str, str, str]  # of a function: domain, name, overload
_HINT = "inline them where the model is made: onnx.inliner.inline_local_functions(model)"


def check_expansion(model: onnx.ModelProto) -> None:
    """Raise ModelError when functions call themselves, are nested too deeply, or would make too many nodes."""
    if not model.functions:
        return
    bodies = {key_of_function(f): list(nodes_of(f.node)) for f in model.functions}
    calls = {key: [call for node in body if (call := key_of(node)) in bodies] for key, body in bodies.items()}
    sizes: dict[Key, int] = {}
    depths: dict[Key, int] = {}
    for key in _callees_first(calls):
        depths[key] = 1 + max((depths[call] for call in calls[key]), default=0)
        sizes[key] = len(bodies[key]) + sum(sizes[call] for call in calls[key])
        if depths[key] > MAX_DEPTH:
            raise ModelError(f"functions are nested more than {MAX_DEPTH} deep", hint=_HINT)
    nodes = list(nodes_of(model.graph.node))
    total = len(nodes) + sum(sizes.get(key_of(node), 0) for node in nodes)
    if total > MAX_NODES:
        raise ModelError(
            f"functions would make {_power(total)} nodes of this model (at most {MAX_NODES} are supported)",
            hint="check where the file comes from",
        )


def _power(number: int) -> str:
    digits = len(str(number)) if number.bit_length() < 10000 else round(number.bit_length() * 0.30103)
    return f"about 10^{digits - 1}"


def key_of(node: onnx.NodeProto) -> Key:
    """Of the function that a node calls, if the model has it."""
    return node.domain, node.op_type, node.overload


def key_of_function(function: onnx.FunctionProto) -> Key:
    return function.domain, function.name, function.overload


def nodes_of(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """All nodes, those of subgraphs too."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from nodes_of(graph.node)


def _callees_first(calls: dict[Key, list[Key]]) -> list[Key]:
    """Functions in an order in which each stands behind those that it calls."""
    waiting = {key: len(set(called)) for key, called in calls.items()}
    callers: dict[Key, list[Key]] = {key: [] for key in calls}
    for key, called in calls.items():
        for call in set(called):
            callers[call].append(key)
    ordered = [key for key, count in waiting.items() if not count]
    for key in ordered:  # grows while it is walked
        for caller in callers[key]:
            waiting[caller] -= 1
            if not waiting[caller]:
                ordered.append(caller)
    if len(ordered) < len(calls):
        name = next(name for (_, name, _), count in waiting.items() if count)
        raise ModelError(f"function '{display_name(name)}' calls itself", hint="recursion is not supported")
    return ordered
