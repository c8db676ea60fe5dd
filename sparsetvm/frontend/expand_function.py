"""A standard operator written in others, as the ONNX standard defines it."""

from __future__ import annotations

import onnx
from onnx import defs

from sparsetvm.frontend.parts import Lowered
from sparsetvm.frontend.to_onnx import value_info


def expanded(parts: Lowered) -> list[onnx.NodeProto]:
    """The nodes of its definition for these inputs; none when the standard has no definition for this opset."""
    schema = defs.get_schema(parts.node.op_type, parts.opset, "")
    text = _definition(parts, schema)
    if text is None:
        return []
    function = onnx.FunctionProto()
    function.ParseFromString(text)
    names = {formal: "" for formal in function.input}
    names.update(zip(function.input, parts.node.input, strict=False))
    names.update((formal, actual) for formal, actual in zip(function.output, parts.node.output, strict=False) if actual)
    attributes = {name: entry.default_value for name, entry in schema.attributes.items() if entry.default_value.name}
    attributes.update((attribute.name, attribute) for attribute in parts.node.attribute)
    nodes = []
    for inner in function.node:
        node = onnx.NodeProto()
        node.CopyFrom(inner)
        _bind(node, names, attributes, f"{parts.y}.")
        nodes.append(node)
    return nodes


def _definition(parts: Lowered, schema: defs.OpSchema) -> bytes | None:
    if schema.has_context_dependent_function:
        types = [onnx.TypeProto() if value is None else value_info(value).type for value in parts.inputs]
        versions = [v for v in schema.context_dependent_function_opset_versions if v <= parts.opset]
        text: bytes = schema.get_context_dependent_function_with_opset_version(
            max(versions, default=parts.opset),
            parts.node.SerializeToString(),
            [kind.SerializeToString() for kind in types],
        )
        return text or None
    versions = [version for version in schema.function_opset_versions if version <= parts.opset]
    if not schema.has_function or not versions:
        return None
    return bytes(schema.get_function_with_opset_version(max(versions)))


def _bind(node: onnx.NodeProto, names: dict[str, str], attributes: dict[str, onnx.AttributeProto], prefix: str) -> None:
    """Replace formal names by actual ones, and references to the operator's attributes by their values."""
    for field in (node.input, node.output):
        for at, name in enumerate(field):
            if name:
                field[at] = names.setdefault(name, prefix + name)
    kept = []
    for attribute in node.attribute:
        if not attribute.ref_attr_name:
            kept.append(attribute)
        elif attribute.ref_attr_name in attributes:
            value = onnx.AttributeProto()
            value.CopyFrom(attributes[attribute.ref_attr_name])
            value.name = attribute.name
            kept.append(value)
    del node.attribute[:]
    node.attribute.extend(kept)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                _bind(inner, names, attributes, prefix)
            for info in graph.output:
                info.name = names.setdefault(info.name, prefix + info.name)
