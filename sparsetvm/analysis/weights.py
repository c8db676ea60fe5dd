"""The constant weights of an ONNX model as (m, k) matrices, and how to replace them in the file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from onnx import numpy_helper

from sparsetvm.frontend.constants import tensor_array
from sparsetvm.frontend.names import UniqueNames

_FLOATS = ("float16", "float32", "float64")
View = Literal["mk", "km", "oihw"]


@dataclass(frozen=True)
class LayerWeight:
    """The weight of one Conv, Gemm or MatMul.

    matrix: (m, k), m output features. index, position: which node, and which input of it. holder: the constant that it
    comes from, through Identity and Transpose nodes. as_read, as_held: how the node sees it and how the holder stores
    it, "mk", "km" (transposed) or "oihw" (convolution).
    """

    name: str
    op: str
    index: int
    position: int
    holder: str
    as_read: View
    as_held: View
    shape: tuple[int, ...]
    matrix: np.ndarray
    depthwise: bool = False

    @property
    def taps(self) -> int:
        """Columns of `matrix` that read one input channel."""
        return math.prod(self.shape[2:]) if self.as_read == "oihw" else 1


def _to_matrix(data: np.ndarray, view: View) -> np.ndarray:
    return data.T if view == "km" else data.reshape(data.shape[0], -1)


def _from_matrix(matrix: np.ndarray, view: View, shape: tuple[int, ...]) -> np.ndarray:
    return np.ascontiguousarray(matrix.T if view == "km" else matrix.reshape(shape))


class ModelWeights:
    """Constant weights of the model's outermost graph, in node order. `rewrite` changes the model in place."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._graph = model.graph
        self._declare = model.ir_version < 4  # initializers of old files are graph inputs as well
        self._tensors = {tensor.name: tensor for tensor in self._graph.initializer}
        self._aliases: dict[str, tuple[str, bool]] = {}  # output of Identity, Transpose -> (input, transposed)
        for node in self._graph.node:
            self._note(node)
        self.layers: list[LayerWeight] = []
        layer_name = UniqueNames()
        for index, node in enumerate(self._graph.node):
            name = layer_name(node.name or f"{node.op_type}_{index}")
            layer = self._layer(name, index) if node.domain in ("", "ai.onnx") else None
            if layer is not None:
                self.layers.append(layer)

    def _note(self, node: onnx.NodeProto) -> None:
        if node.domain not in ("", "ai.onnx") or len(node.output) != 1 or len(node.input) > 1:
            return
        attributes = {attribute.name: attribute for attribute in node.attribute}
        if node.op_type == "Constant" and "value" in attributes:
            self._tensors[node.output[0]] = attributes["value"].t
        elif node.op_type == "Identity" and node.input:
            self._aliases[node.output[0]] = (node.input[0], False)
        elif node.op_type == "Transpose" and node.input:
            perm = list(attributes["perm"].ints) if "perm" in attributes else [1, 0]
            if perm == [1, 0]:
                self._aliases[node.output[0]] = (node.input[0], True)

    def _resolve(self, name: str) -> tuple[str, bool]:
        """(the constant or computed value behind a name, whether it is read transposed)."""
        flipped, steps = False, 0
        while name in self._aliases and steps < len(self._aliases):
            steps += 1
            name, turned = self._aliases[name]
            flipped ^= turned
        return name, flipped

    def _layer(self, name: str, index: int) -> LayerWeight | None:
        node = self._graph.node[index]
        attributes = {attribute.name: attribute.i for attribute in node.attribute}
        if node.op_type == "Conv":
            return self._weight(name, index, 1, "oihw", attributes.get("group", 1))
        if node.op_type == "Gemm":
            return self._weight(name, index, 1, "mk" if attributes.get("transB", 0) else "km")
        if node.op_type == "MatMul":
            return self._weight(name, index, 1, "km") or self._weight(name, index, 0, "mk")
        return None

    def _weight(self, name: str, index: int, position: int, view: View, groups: int = 1) -> LayerWeight | None:
        node = self._graph.node[index]
        if len(node.input) <= position:
            return None
        holder, flipped = self._resolve(node.input[position])
        tensor = self._tensors.get(holder)
        if tensor is None:
            return None
        data = tensor_array(tensor, f"weight of '{name}'")
        matches = data.ndim >= 3 and not flipped if view == "oihw" else data.ndim == 2
        if not matches or str(data.dtype) not in _FLOATS or data.size == 0:
            return None
        held: View = view if not flipped else "km" if view == "mk" else "mk"
        depthwise = view == "oihw" and groups > 1 and data.shape[1] == 1
        matrix = _to_matrix(data, held)
        shape = data.shape[::-1] if flipped else data.shape
        return LayerWeight(name, node.op_type, index, position, holder, view, held, shape, matrix, depthwise)

    def rewrite(
        self, layers: Sequence[LayerWeight], change: Callable[[LayerWeight], np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Replace the weights of `layers` by `change(layer)`, once per weight; returns the new matrix of each layer.

        A constant is changed in place when nobody else reads it, and all layers see it the same way; otherwise these
        layers get copies of their own.
        """
        changed: dict[tuple[str, View, tuple[int, ...]], np.ndarray] = {}
        new: dict[str, np.ndarray] = {}
        for layer in layers:
            key = (layer.holder, layer.as_held, layer.matrix.shape)
            if key not in changed:
                changed[key] = change(layer)
            new[layer.name] = changed[key]
        views: dict[str, set[View]] = {}
        for holder, view, _ in changed:
            views.setdefault(holder, set()).add(view)
        foreign = self._foreign_reads({(layer.index, layer.position) for layer in layers})
        for holder, held in views.items():
            readers = [layer for layer in layers if layer.holder == holder]
            if len(held) == 1 and holder not in foreign:
                tensor, first = self._tensors[holder], readers[0]
                data = _from_matrix(new[first.name], first.as_held, tuple(tensor.dims))
                tensor.CopyFrom(numpy_helper.from_array(data, tensor.name))
            else:
                self._give_copies(readers, new)
        return new

    def _foreign_reads(self, ours: set[tuple[int, int]]) -> set[str]:
        """Constants that anything but the given (node, input) pairs reads: other nodes, subgraphs, outputs."""
        foreign = {self._resolve(output.name)[0] for output in self._graph.output}
        for index, node in enumerate(self._graph.node):
            alias = len(node.output) == 1 and node.output[0] in self._aliases
            for position, name in enumerate(node.input):
                if not alias and (index, position) not in ours:
                    foreign.add(self._resolve(name)[0])
            foreign.update(self._resolve(name)[0] for name in _captured(node))
        return foreign

    def _give_copies(self, readers: Iterable[LayerWeight], new: dict[str, np.ndarray]) -> None:
        copies: dict[tuple[View, View], str] = {}
        fresh = UniqueNames(self._tensors, {name for node in self._graph.node for name in node.output})
        for layer in readers:
            key = (layer.as_held, layer.as_read)
            if key not in copies:
                copies[key] = fresh(f"{layer.holder}.pruned")
                data = _from_matrix(new[layer.name], layer.as_read, layer.shape)
                tensor = numpy_helper.from_array(data, copies[key])
                self._graph.initializer.append(tensor)
                self._tensors[copies[key]] = tensor
                if self._declare:
                    self._graph.input.append(
                        onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, data.shape)
                    )
            self._graph.node[layer.index].input[layer.position] = copies[key]


def _captured(node: onnx.NodeProto) -> Iterable[str]:
    """Names that the subgraphs of a node mention."""
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from inner.input
                yield from _captured(inner)
            yield from (output.name for output in graph.output)
