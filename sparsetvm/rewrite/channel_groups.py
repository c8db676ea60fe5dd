"""Which values share their channels, and which of those channels are constant.

A layer makes the channels of its output. Operators that work channel by channel (activations, sums, pools, depthwise
convolutions, reshapes that keep a channel's elements together) pass them on, so the values before and behind them form
one group: a channel goes from all of them or from none. A channel whose weights are all zero is its bias everywhere,
and its activation, sum or pool is then a constant as well.

(Dependency groups: Fang et al., DepGraph: Towards Any Structural Pruning, CVPR 2023.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sparsetvm.core.graph import SPARSETVM_DOMAIN, Graph, Node, Value
from sparsetvm.frontend.names import words
from sparsetvm.frontend.to_onnx import single_node_model
from sparsetvm.rewrite.make_layers import LAYER_OPS

_UNARY = words(
    """
    Abs Celu Elu Erf Exp Gelu HardSigmoid HardSwish Identity LeakyRelu Mish Neg Relu Selu Sigmoid Softplus Softsign Sqrt
    Tanh
    """
)
_OWN_UNARY = ("Clip", "Silu", "HardSwish")
_SHAPE_ONLY = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
_POOLS = ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")


def _product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """What is multiplied by zero is zero, known or not; a product with a pruned weight says so too."""
    return np.where((left == 0) | (right == 0), np.float32(0), left * right)


_BINARY: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": _product,
    "Div": np.divide,
    "Max": np.maximum,
    "Min": np.minimum,
    "PRelu": lambda x, slope: np.where(x < 0, x * slope, x),
}


@dataclass
class ChannelGroup:
    """Values of `count` channels each. axes: value name -> the dimension that holds the channels.

    A dimension may be a multiple of `count`: then each channel has equally many consecutive elements of it. pinned:
    something reads or makes these values that cannot do with fewer channels.
    """

    count: int
    axes: dict[str, int]
    pinned: bool = False


class ChannelGroups:
    """Groups of a graph of layers whose epilogues are not fused yet.

    of: value name -> its group; values without channels are missing. constants: value name -> (count,) float32, the
    value of each channel that is the same at all places and for all inputs, NaN where it is not.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.of: dict[str, ChannelGroup] = {}
        self.constants: dict[str, np.ndarray] = {}
        with np.errstate(all="ignore"):
            for node in graph.nodes:
                if is_layer(node):
                    self._start(node)
                elif not self._follow(node):
                    self._pin(node.inputs)
        self._pin(graph.outputs)

    def unique(self) -> list[ChannelGroup]:
        """Each group once."""
        return list({id(group): group for group in self.of.values()}.values())

    def _pin(self, names: list[str]) -> None:
        for name in names:
            if name in self.of:
                self.of[name].pinned = True

    def _start(self, layer: Node) -> None:
        """The rows of a layer are new channels; it can do without some input channels when they are its columns."""
        x, out = layer.inputs[0], self.graph.values[layer.outputs[0]]
        matrix = layer.op == "matmul"
        if x in self.of:
            shape, axis = self.graph.values[x].shape, self.of[x].axes[x]
            if (axis != len(shape) - 1) if matrix else (axis != 1 or shape[1] != self.of[x].count):
                self._pin([x])
        weight = layer.attrs["weight"]
        self.of[out.name] = ChannelGroup(weight.shape[0], {out.name: len(out.shape) - 1 if matrix else 1})
        self._set_constants(out.name, np.where(weight.any(axis=1), np.float32(np.nan), bias_of(layer)))

    def _set_constants(self, name: str, constants: np.ndarray) -> None:
        self.constants[name] = np.where(np.isfinite(constants), constants, np.nan).astype(np.float32)

    def _follow(self, node: Node) -> bool:
        """Add the output of a node that works channel by channel to the group of its inputs; False for other nodes."""
        values = [self.graph.values[name] for name in node.inputs if name]
        names = [value.name for value in values if not value.is_constant]
        if not names or len(node.outputs) != 1 or any(name not in self.of for name in names):
            return False
        group, axis = self.of[names[0]], self.of[names[0]].axes[names[0]]
        out = self.graph.values[node.outputs[0]]
        if node.is_op(*_BINARY) and len(values) == 2:
            if not self._alike(names, axis, out):
                return False
            left, right = (self._operand(value, group, axis, len(out.shape)) for value in values)
            constants = _BINARY[node.op](left, right)
        elif names != node.inputs[:1]:
            return False
        else:
            followed = self._through(node, values[0], out)
            if followed is None:
                return False
            axis, constants = followed
        for other in names[1:]:
            self._merge(group, self.of[other])
        group.axes[out.name] = axis
        self.of[out.name] = group
        self._set_constants(out.name, constants)
        return True

    def _alike(self, names: list[str], axis: int, out: Value) -> bool:
        """Whether all these operands hold the channels of the output, in the same dimension."""
        count = self.of[names[0]].count
        return all(
            self.of[name].count == count
            and self.of[name].axes[name] == axis
            and len(self.graph.values[name].shape) == len(out.shape)
            and self.graph.values[name].shape[axis] == out.shape[axis]
            for name in names
        )

    def _operand(self, value: Value, group: ChannelGroup, axis: int, rank: int) -> np.ndarray:
        """(count,): what each channel of an operand is, NaN where it differs within the channel."""
        if value.data is None:
            return self.constants[value.name]
        data = np.moveaxis(value.data.reshape((1,) * (rank - value.data.ndim) + value.data.shape), axis, 0)
        if not data.size:
            return np.full(group.count, np.nan)
        data = data.reshape(1 if data.shape[0] == 1 else group.count, -1)
        same = np.where((data == data[:, :1]).all(axis=1), data[:, 0], np.nan)
        return np.broadcast_to(same, (group.count,))

    def _merge(self, group: ChannelGroup, other: ChannelGroup) -> None:
        if other is group:
            return
        group.axes.update(other.axes)
        group.pinned |= other.pinned
        self.of.update(dict.fromkeys(other.axes, group))

    def _through(self, node: Node, x: Value, out: Value) -> tuple[int, np.ndarray] | None:
        """Axis and constants behind a node with one computed input, None when it does not keep channels apart."""
        group, constants = self.of[x.name], self.constants[x.name]
        axis = group.axes[x.name]
        if node.is_op(*_UNARY) or node.is_op(*_OWN_UNARY, domain=SPARSETVM_DOMAIN):
            return axis, self._evaluate(node, constants)
        if node.is_op("Transpose"):
            order = [int(a) for a in node.attrs.get("perm") or range(len(x.shape) - 1, -1, -1)]
            return order.index(axis), constants
        if node.is_op(*_SHAPE_ONLY):
            behind = _axis_after_reshape(x.shape, axis, group.count, out.shape)
            return None if behind is None else (behind, constants)
        planes = axis == 1 and x.shape[1] == group.count
        if planes and node.is_op(*_POOLS):
            counts_pads = node.op == "AveragePool" and bool(node.attrs.get("count_include_pad", 0))
            return axis, np.where(constants == 0, constants, np.nan) if counts_pads else constants
        if planes and node.is_op("depthwise_conv2d", domain=SPARSETVM_DOMAIN):
            return axis, _depthwise(node, constants)
        return None

    def _evaluate(self, node: Node, constants: np.ndarray) -> np.ndarray:
        if np.isnan(constants).all():
            return constants
        from onnx.reference import ReferenceEvaluator  # not at the top: few models need it

        evaluator = ReferenceEvaluator(single_node_model(node, self.graph))
        # NaN stands for "unknown", but not every operator passes it on.
        found = np.asarray(evaluator.run(None, {node.inputs[0]: constants})[0])
        return np.where(np.isnan(constants), np.nan, found)


def is_layer(node: Node) -> bool:
    """True for a product, or a convolution in which every output channel reads every input channel."""
    return node.is_op(*LAYER_OPS, domain=SPARSETVM_DOMAIN) and (
        node.attrs["conv"] is None or node.attrs["conv"].groups == 1
    )


def bias_of(layer: Node) -> np.ndarray:
    """The bias of a layer, (m,) float32, zeros when it has none."""
    bias: np.ndarray | None = layer.attrs["bias"]
    return np.zeros(layer.attrs["weight"].shape[0], np.float32) if bias is None else bias


def _depthwise(node: Node, constants: np.ndarray) -> np.ndarray:
    """Near padding a constant meets fewer weights: only zero stays constant there."""
    weight, bias = node.attrs["weight"], bias_of(node)
    inside = bias if any(node.attrs["conv"].pads) else bias + constants * weight.sum(axis=1, dtype=np.float64)
    known = np.isfinite(constants) if not any(node.attrs["conv"].pads) else constants == 0
    return np.where(weight.any(axis=1), np.where(known, inside, np.nan), bias)


def _axis_after_reshape(shape: tuple[int, ...], axis: int, count: int, out: tuple[int, ...]) -> int | None:
    """The dimension of `out` that holds the channels whole and in order, None when a reshape mixes or splits them."""
    before = math.prod(shape[:axis])
    for position, size in enumerate(out):
        if math.prod(out[:position]) == before and size % count == 0 and size:
            return position
    return None
