"""Attributes with which ONNX's shape inference (1.23) crashes, or never ends.

An Einsum whose equation holds anything but letters, commas, ellipses and an arrow keeps it busy for ever; axes that fit
no 32 bits, or are negative where none may be, lead it out of its arrays. Functions that are inlined or converted to
another opset go through it as well. So all attributes are looked at before any of that, those of functions too, whose
calls may hand them on from one to the next.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import onnx

from sparsetvm.errors import ModelError
from sparsetvm.frontend.expansion import Key, key_of, key_of_function, nodes_of
from sparsetvm.frontend.names import display_name

_MAX_RANK = 64
_COUNTS = ("batch_dims",)
_AXES = ("axes", "axis", "batch_axis", "perm", "split_axis", "time_axis")
_TERM = rb"[A-Za-z]*(?:\.\.\.)?[A-Za-z]*"
_EQUATION = re.compile(rb"%b(?:,%b)*(?:->%b)?" % (_TERM, _TERM, _TERM))
_Formal = tuple[Key, str, str]  # a function, its attribute, and the name of the standard attribute that it becomes


def check_attributes(model: onnx.ModelProto) -> None:
    """Raise ModelError naming the layer, a node or the call of a function, of the first attribute that is unsafe."""
    for layer, name, attribute in _attributes(model):
        problem = "" if attribute.ref_attr_name else _problem(name, attribute)
        if problem:
            raise ModelError(
                f"not a valid attribute '{display_name(attribute.name)}': {problem}",
                layer=display_name(layer),
                hint="check the model with onnx.checker.check_model(path, full_check=True)",
            )


def _problem(name: str, attribute: onnx.AttributeProto) -> str:
    """What is wrong with an attribute that is the standard's `name`, or ""."""
    if name == "equation":
        valid = _EQUATION.fullmatch(attribute.s.replace(b" ", b""))
        return "" if valid else f"'{display_name(attribute.s.decode(errors='replace'), 100)}' is no equation"
    least = 0 if name in _COUNTS else -_MAX_RANK
    wrong = next((value for value in (attribute.i, *attribute.ints) if not least <= value <= _MAX_RANK), None)
    return "" if wrong is None else f"{wrong} is no axis" if name in _AXES else f"{wrong} is no number of axes"


def _attributes(model: onnx.ModelProto) -> Iterator[tuple[str, str, onnx.AttributeProto]]:
    """(node or function, name in the standard, attribute) of all that is or becomes one of those that are looked at."""
    bodies = [(key_of_function(function), list(nodes_of(function.node))) for function in model.functions]
    calls: dict[tuple[Key, str], list[tuple[Key, str]]] = {}
    waiting: list[_Formal] = []
    for key, body in bodies:
        for node in body:
            for attribute in node.attribute:
                formal = attribute.ref_attr_name
                if formal and _is_looked_at(node, attribute.name):
                    waiting.append((key, formal, attribute.name))
                elif formal:
                    calls.setdefault((key_of(node), attribute.name), []).append((key, formal))
    known = set(waiting)
    for function, formal, name in waiting:  # grows while it is walked
        found = {(caller, its, name) for caller, its in calls.get((function, formal), ())} - known
        known |= found
        waiting += found
    becomes: dict[tuple[Key, str], set[str]] = {}
    for function, formal, name in known:
        becomes.setdefault((function, formal), set()).add(name)
    for nodes in (nodes_of(model.graph.node), *(body for _, body in bodies)):
        for node in nodes:
            key, layer = key_of(node), node.name or node.op_type
            for attribute in node.attribute:
                if _is_looked_at(node, attribute.name):
                    yield layer, attribute.name, attribute
                for name in becomes.get((key, attribute.name), ()):
                    yield layer, name, attribute
    for function_proto in model.functions:
        for attribute in function_proto.attribute_proto:
            for name in becomes.get((key_of_function(function_proto), attribute.name), ()):
                yield function_proto.name, name, attribute


def _is_looked_at(node: onnx.NodeProto, name: str) -> bool:
    if node.domain not in ("", "ai.onnx"):
        return False
    return name in _AXES or name in _COUNTS or (name == "equation" and node.op_type == "Einsum")
