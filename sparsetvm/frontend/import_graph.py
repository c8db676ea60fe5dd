"""One walk over the nodes of an ONNX graph: infer shapes, fold constants, drop what does nothing, keep the rest.

All shapes are static, so every Shape is a constant and the chains that exporters build from it
(Shape, Gather, Concat, Reshape) fold away as the walk goes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx
from onnx import defs

from sparsetvm.core.graph import Graph, Node, Value
from sparsetvm.errors import ModelError
from sparsetvm.frontend.attributes import attribute_value, constant_data, shape_data
from sparsetvm.frontend.constants import take_initializers
from sparsetvm.frontend.fold import fold_node
from sparsetvm.frontend.infer import check_node, infer_outputs
from sparsetvm.frontend.lower import lower
from sparsetvm.frontend.names import UniqueNames, display_name, display_shape
from sparsetvm.frontend.noop import passes_through
from sparsetvm.frontend.operands import check_operands
from sparsetvm.frontend.parts import Lowered
from sparsetvm.frontend.support import is_supported, unsupported_error

FLOAT_TYPES_HINT = "only float32 and float16 models are supported: export or convert to one of them"
_LAYER_OPS = ("MatMul", "Gemm", "Conv", "ConvTranspose")
_LAYER_TYPES = ("float32", "float16")
_MAX_DEPTH = 16
_MAX_ELEMENTS = 1 << 40
# Operators whose outputs after the first may be left out: masks, indices and statistics for training.
_OPTIONAL_OUTPUTS = ("BatchNormalization", "Dropout", "LayerNormalization", "MaxPool")
_CONTROL_FLOW = ("If", "Loop", "Scan")
_KEEPS_SIZE = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


class GraphImporter:
    """Turns the nodes of a graph into `Node`s, with the values they mention."""

    def __init__(
        self, opset: int, inputs: Iterable[Value], outputs: Sequence[str], constants: Mapping[str, np.ndarray]
    ) -> None:
        self.opset = opset
        self.nodes: list[Node] = []
        self.values: dict[str, Value] = {value.name: value for value in inputs}
        self._inputs = list(self.values)
        self._outputs = list(outputs)
        for value in self.values.values():
            _check_size(value, display_name(value.name))
        for name, data in constants.items():
            self._set_constant(name, data)
        self._same: dict[str, str] = {}  # a dropped value -> the value that stands for it
        self._layer_name = UniqueNames()
        self._fresh = UniqueNames(self.values, self._same)

    def import_nodes(self, nodes: Sequence[onnx.NodeProto], scope: dict[str, str], depth: int = 0) -> None:
        """Import the nodes in order. `scope` maps names of a subgraph to names of this graph, and is added to."""
        read = set(self._outputs).union(*(_names_read(node) for node in nodes)) if depth == 0 else set()
        for index, original in enumerate(nodes):
            node = onnx.NodeProto()
            node.CopyFrom(original)
            node.domain = _domain(node)
            if depth == 0 and node.op_type in _OPTIONAL_OUTPUTS:
                _drop_unread_outputs(node, read)
            layer = self._layer_name(node.name or f"{node.op_type}_{index}")
            self._bind_names(node, scope, layer, nested=depth > 0)
            if node.op_type == "If" and not node.domain and self._inline_branch(node, scope, depth):
                continue
            if not self._import_node(node, layer, depth):
                unsupported = [(layer, node.op_type, node.domain)]
                for later, other in enumerate(nodes[index + 1 :], index + 1):
                    if not is_supported(other.op_type, _domain(other)):
                        name = other.name or f"{other.op_type}_{later}"
                        unsupported.append((name, other.op_type, _domain(other)))
                raise unsupported_error(unsupported)

    def finish(self, name: str) -> Graph:
        """The graph of everything imported, with its outputs under their own names."""
        for output in self._outputs:
            self._name_output(output)
        graph = Graph(name, self.opset, self.nodes, self.values, self._inputs, list(self._outputs))
        graph.prune_dead()
        return graph

    def _resolve(self, name: str) -> str:
        return self._same.get(name, name)

    def _set_constant(self, name: str, data: np.ndarray) -> None:
        self.values[name] = Value(name, data.shape, str(data.dtype), data)

    def _bind_names(self, node: onnx.NodeProto, scope: dict[str, str], layer: str, nested: bool) -> None:
        """Replace input names by the values that stand for them; check that outputs are new."""
        for i, name in enumerate(node.input):
            if not name:
                continue
            node.input[i] = self._resolve(scope.get(name, name))
            if node.input[i] not in self.values:
                raise ModelError(
                    f"no earlier node computes its input '{display_name(name)}'",
                    layer=display_name(layer),
                    hint="check the model with onnx.checker.check_model(path)",
                )
        for i, name in enumerate(node.output):
            if name and nested:
                scope[name] = node.output[i] = self._fresh(name)
            elif name and (name in self.values or name in self._same or name in node.output[:i]):
                raise ModelError(f"its output '{display_name(name)}' is already defined", layer=display_name(layer))

    def _inline_branch(self, node: onnx.NodeProto, scope: Mapping[str, str], depth: int) -> bool:
        """Replace an If of a constant condition by its branch; False when the condition is computed."""
        condition = self.values[node.input[0]].data if len(node.input) == 1 and node.input[0] else None
        branches = {attribute.name: attribute.g for attribute in node.attribute}
        if condition is None or condition.size != 1 or depth >= _MAX_DEPTH:
            return False
        branch = branches.get("then_branch" if bool(condition.reshape(())) else "else_branch")
        if branch is None or len(branch.output) != len(node.output):
            return False
        inner = dict(scope)
        for name, data in take_initializers(branch).items():
            inner[name] = self._fresh(name)
            self._set_constant(inner[name], data)
        self.import_nodes(branch.node, inner, depth + 1)
        for ours, theirs in zip(node.output, branch.output, strict=True):
            value = self._resolve(inner.get(theirs.name, theirs.name))
            if value not in self.values:
                raise ModelError(f"no node computes the output '{display_name(theirs.name)}' of its branch")
            self._same[ours] = value
        return True

    def _import_lowered(self, parts: Lowered, layer: str, depth: int) -> None:
        """Import the nodes that stand for one, under names of their own."""
        inner: dict[str, str] = {}
        for name, data in parts.constants.items():
            inner[name] = self._fresh(name)
            self._set_constant(inner[name], data)
        if len(parts.nodes) == 1:
            self._layer_name.give_back(layer)  # the one node keeps the name
        for node in parts.nodes:
            node.name = layer if len(parts.nodes) == 1 else f"{layer}/{node.op_type}"
        self.import_nodes(parts.nodes, inner, depth + 1)
        for name in parts.node.output:
            if name:
                self._same[name] = self._resolve(inner[name])

    def _import_node(self, node: onnx.NodeProto, layer: str, depth: int) -> bool:
        """Fold, drop or keep one node; False when its operator is not supported."""
        shown = display_name(layer)
        if node.op_type == "Constant" and not node.domain and len(node.output) == 1:
            self._set_constant(node.output[0], constant_data(node, shown))
            return True
        if node.domain or node.op_type in _CONTROL_FLOW or not defs.has(node.op_type, self.opset, node.domain):
            return False
        inputs = [self.values[name] if name else None for name in node.input]
        constant = all(value is None or value.is_constant for value in inputs)
        if not constant and not is_supported(node.op_type, node.domain):
            return False
        check_node(node, self.opset, shown)
        if node.op_type == "Range" or not constant:
            attrs = {attribute.name: attribute_value(attribute, shown) for attribute in node.attribute}
            parts = lower(node, inputs, attrs, self.opset, shown) if depth < _MAX_DEPTH else None
            if parts is not None:
                self._import_lowered(parts, layer, depth)
                return True
        if node.op_type == "Shape":
            self._set_constant(node.output[0], shape_data(node, inputs[0]))
            return True
        if node.op_type == "Size" and inputs[0] is not None:
            self._set_constant(node.output[0], np.array(int(np.prod(inputs[0].shape, dtype=np.int64)), np.int64))
            return True
        outputs = infer_outputs(node, self.values, self.opset, shown)
        if constant:
            folded = fold_node(node, self.values, outputs, self.opset, shown)
            if folded is not None:
                for value, data in zip(outputs, folded, strict=True):
                    self._set_constant(value.name, data)
                return True
            if not is_supported(node.op_type, node.domain):
                return False
        attrs = {attribute.name: attribute_value(attribute, shown) for attribute in node.attribute}
        if outputs and passes_through(node.op_type, inputs, node.output, outputs[0], attrs):
            self._same[node.output[0]] = node.input[0]
            return True
        for value in outputs:
            _check_size(value, display_name(value.name), shown)
        _check_types(node, inputs, outputs, shown)
        check_operands(node.op_type, inputs, outputs, attrs, shown)
        self.values.update((value.name, value) for value in outputs)
        self.nodes.append(Node(layer, node.op_type, list(node.input), list(node.output), attrs, "", (layer,)))
        return True

    def _name_output(self, output: str) -> None:
        """Give a dropped output back its name: rename the value that stands for it, or keep an Identity."""
        if output in self.values:
            return
        if output not in self._same:
            raise ModelError(f"no node computes the model's output '{display_name(output)}'")
        stands_for = self.values[self._resolve(output)]
        if stands_for.data is not None:
            self._set_constant(output, stands_for.data)
        elif stands_for.name in self._outputs or stands_for.name in self._inputs:
            self.values[output] = Value(output, stands_for.shape, stands_for.dtype)
            layer = self._layer_name(f"Identity_{output}")
            self.nodes.append(Node(layer, "Identity", [stands_for.name], [output], {}, "", (layer,)))
        else:
            old = stands_for.name
            for node in self.nodes:
                node.inputs = [output if name == old else name for name in node.inputs]
                node.outputs = [output if name == old else name for name in node.outputs]
            self._same = {dropped: output if name == old else name for dropped, name in self._same.items()}
            self.values[output] = Value(output, stands_for.shape, stands_for.dtype)
            del self.values[old]


def _check_size(value: Value, name: str, layer: str | None = None) -> None:
    """Raise ModelError for a value that fits into no memory: sizes behind it would overflow."""
    if math.prod(value.shape) > _MAX_ELEMENTS:
        what = f"'{name}' has {display_shape(value.shape)} elements, more than fit into memory"
        raise ModelError(what, layer=layer, hint="export the model for a smaller input shape: see --shape")


def _domain(node: onnx.NodeProto) -> str:
    return "" if node.domain == "ai.onnx" else node.domain


def _names_read(node: onnx.NodeProto) -> set[str]:
    """Names that a node or its subgraphs read."""
    names = set(node.input)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            names.update(*(_names_read(inner) for inner in graph.node), [info.name for info in graph.output])
    return names


def _drop_unread_outputs(node: onnx.NodeProto, read: set[str]) -> None:
    while len(node.output) > 1 and node.output[-1] not in read:
        node.output.pop()


def _check_types(node: onnx.NodeProto, inputs: Sequence[Value | None], outputs: Sequence[Value], layer: str) -> None:
    first = inputs[0] if inputs else None
    if node.op_type in _KEEPS_SIZE and first is not None and math.prod(first.shape) != math.prod(outputs[0].shape):
        what = f"{node.op_type} of {display_shape(first.shape)} to {display_shape(outputs[0].shape)} changes the size"
        raise ModelError(what, layer=layer, hint="the model was exported for another input shape: see --shape")
    for value in outputs:
        if 0 in value.shape:
            what = (
                f"{node.op_type} gives output '{display_name(value.name)}' of size zero ({display_shape(value.shape)})"
            )
            raise ModelError(what, layer=layer, hint="remove this layer, or fix the dimension that is zero")
    if node.op_type not in _LAYER_OPS:
        return
    for value in filter(None, inputs):
        if value.dtype not in _LAYER_TYPES:
            kind = "weights" if value.is_constant else "inputs"
            what = f"{node.op_type} has {kind} of type {value.dtype} ('{display_name(value.name)}')"
            raise ModelError(what, layer=layer, hint=FLOAT_TYPES_HINT)
        if 0 in value.shape:
            what = f"{node.op_type} reads '{display_name(value.name)}' of size zero ({display_shape(value.shape)})"
            raise ModelError(what, layer=layer, hint="remove this layer, or fix the dimension that is zero")
