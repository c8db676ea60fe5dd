"""Where a dimension of open size lies in every tensor of a network, and what must be masked so that it may be padded.

A network for some size is later run on fewer samples or tokens, the rest of the dimension filled up. That is right when
no result at a real position depends on a padded one. So the network is imported twice, for two sizes p and q: the axes
in which shapes differ are the symbolic ones, and each operator has a rule that says whether it treats the positions
along them alike (element-wise operators, products over other axes), mixes them in a way that a mask makes exact
(Softmax, ReduceMean and products over the axis), or cannot be padded (Concat along it, a convolution over it).

    trace(graph for p, graph for q, (p, q), "seq") -> SymbolicAxes(axes, masks, splits)

`splits`: no position influences another at all, as in a batch: any number of positions may run in slices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NoReturn

import numpy as np

from sparsetvm.core.graph import Graph, Node, Value
from sparsetvm.errors import ModelError
from sparsetvm.frontend.names import display_name, words

MaskKind = Literal["lowest", "zero", "mean"]

UNARY = words(
    """
    Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast CastLike Ceil Clip Cos Cosh Dropout Elu Erf Exp Floor Gelu
    HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink Sigmoid Sign
    Silu Sin Sinh Softplus Softsign Sqrt Tan Tanh ThresholdedRelu
    """
)
BROADCAST = words(
    """
    Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod
    Mul Or PRelu Pow Sub Sum Where Xor
    """
)
RESHAPES = words("Flatten Reshape Squeeze Unsqueeze")
_PER_SAMPLE = words(
    """
    AveragePool BatchNormalization Conv ConvTranspose DepthToSpace GlobalAveragePool GlobalLpPool GlobalMaxPool
    GroupNormalization InstanceNormalization LRN LpPool MaxPool Resize SpaceToDepth Upsample
    """
)
_NORMS = words("LayerNormalization RMSNormalization")
_ALONG_AXIS = words("ArgMax ArgMin CumSum Hardmax LogSoftmax Softmax TopK")
_SHAPE_OPERANDS = {"Reshape": (1,), "Expand": (1,), "Slice": (1, 2)}


@dataclass(frozen=True)
class Mask:
    """Padded positions along `axis` of input number `input` of `node` must not count: they become the lowest number or
    zero, and where a mean was taken ("mean"), it is one of the real positions only.
    """

    node: str
    input: int
    axis: int
    kind: MaskKind


@dataclass
class SymbolicAxes:
    """axes: value name -> the axes of open size (values without one are left out)."""

    axes: dict[str, tuple[int, ...]]
    masks: list[Mask] = field(default_factory=list)
    splits: bool = True


def trace(first: Graph, second: Graph, sizes: tuple[int, int], dimension: str) -> SymbolicAxes:
    """Compare a network imported for two sizes of `dimension`, both at least 2.

    Raises ModelError that names the node which cannot be padded.
    """
    return _Trace(first, second, sizes, display_name(dimension)).run()


class _Trace:
    def __init__(self, first: Graph, second: Graph, sizes: tuple[int, int], dimension: str) -> None:
        self.graph, self.other, self.sizes, self.dimension = first, second, sizes, dimension
        self.producers = first.producers()
        self.found = SymbolicAxes({})
        self.factors: dict[tuple[str, int], int] = {}

    def run(self) -> SymbolicAxes:
        self._compare()
        for node in self.graph.nodes:
            self._constants(node)
            self._node(node)
        for name in (*self.graph.inputs, *self.graph.outputs):
            self._interface(name)
        computed = {out for node in self.graph.nodes for out in node.outputs if out} | set(self.graph.inputs)
        if any(len(self._axes(name)) > 1 for name in computed) or any(
            not self._axes(name) for name in self.graph.outputs
        ):
            self.found.splits = False
        if self.found.masks:
            self.found.splits = False
        return self.found

    def reject(self, node: Node | None, what: str) -> NoReturn:
        raise ModelError(
            f"{what}: dimension '{self.dimension}' cannot keep its size open",
            layer=display_name(node.name) if node else None,
            hint="leave out --buckets and fix the size with --shape",
        )

    # --- the two graphs -----------------------------------------------------------------------------------------------

    def _compare(self) -> None:
        """Fill `axes` and `factors`; both graphs must have the same nodes."""
        kinds = [[(n.name, n.op, n.inputs, n.outputs) for n in graph.nodes] for graph in (self.graph, self.other)]
        if kinds[0] != kinds[1]:
            differing = next((n for n, a, b in zip(self.graph.nodes, *kinds, strict=False) if a != b), None)
            self.reject(differing, "the network has other operators for another size")
        for name, value in self.graph.values.items():
            twin = self.other.values.get(name)
            if twin is None or len(twin.shape) != len(value.shape):
                self.reject(self.producers.get(name), f"'{display_name(name)}' has another rank for another size")
            axes = tuple(axis for axis, size in enumerate(value.shape) if twin.shape[axis] != size)
            for axis in axes:
                self._factor(value, twin, axis)
            if axes:
                self.found.axes[name] = axes

    def _factor(self, value: Value, twin: Value, axis: int) -> None:
        """Note k where the axis has k times the symbolic size."""
        p, q = self.sizes
        factor, rest = divmod(value.shape[axis], p)
        if rest or twin.shape[axis] != factor * q:
            node = self.producers.get(value.name)
            self.reject(node, f"axis {axis} of '{display_name(value.name)}' is no multiple of the dimension")
        self.factors[value.name, axis] = factor

    def _axes(self, name: str) -> tuple[int, ...]:
        return self.found.axes.get(name, ())

    def _interface(self, name: str) -> None:
        axes = self._axes(name)
        if len(axes) > 1 or any(self.factors[name, axis] != 1 for axis in axes):
            what = f"input or output '{display_name(name)}' has it {len(axes)} times, or a multiple of it"
            self.reject(self.producers.get(name), what)

    def _constants(self, node: Node) -> None:
        """Constants that depend on the size: shapes do; tables are fine when the longer one only goes on."""
        for at, name in enumerate(node.inputs):
            data, twin = self.graph.constant(name), self.other.constant(name) if name else None
            if data is None or twin is None or at in _SHAPE_OPERANDS.get(node.op, ()):
                continue
            axes = self._axes(name)
            if axes:
                common = tuple(slice(0, min(pair)) for pair in zip(data.shape, twin.shape, strict=True))
                same = np.array_equal(data[common], twin[common], equal_nan=data.dtype.kind == "f")
                if not all(_constant_along(data, axis) for axis in axes):
                    self.found.splits = False
            else:
                same = np.array_equal(data, twin, equal_nan=data.dtype.kind == "f")
            if not same:
                self.reject(node, f"the constant '{display_name(name)}' depends on the size")

    # --- one node -----------------------------------------------------------------------------------------------------

    def _node(self, node: Node) -> None:
        symbolic = [at for at, name in enumerate(node.inputs) if name and self._axes(name)]
        out = self._axes(node.outputs[0])
        if node.op in UNARY or node.op in BROADCAST or node.op == "Expand":
            return
        if not symbolic:
            if out:
                self.reject(node, f"{node.op} makes a tensor of that size")
            return
        if node.op in RESHAPES:
            self._reshape(node)
        elif node.op == "Transpose":
            pass
        elif node.op in ("MatMul", "Gemm"):
            self._product(node)
        elif node.op in _PER_SAMPLE:
            self._only(node, symbolic, (0,))
        elif node.op in _NORMS:
            rank = self._rank(node.inputs[0])
            axis = int(node.attrs.get("axis", -1)) % rank
            self._only(node, symbolic, tuple(range(axis)))
        elif node.op in _ALONG_AXIS:
            self._along(node)
        elif node.op.startswith("Reduce"):
            self._reduce(node)
        elif node.op in ("Concat", "Split", "Trilu"):
            self._not_along(node, int(node.attrs.get("axis", 0)))
        elif node.op in ("Gather", "Slice"):
            self._pick(node)
        else:
            self.reject(node, f"{node.op} is not known to treat positions alike")

    def _rank(self, name: str) -> int:
        return len(self.graph.values[name].shape)

    def _only(self, node: Node, symbolic: Sequence[int], allowed: Sequence[int]) -> None:
        """Positions may be symbolic along the allowed axes of the first input."""
        wrong = [axis for axis in self._axes(node.inputs[0]) if axis not in allowed]
        if wrong or any(symbolic_input > 0 for symbolic_input in symbolic):
            self.reject(node, f"{node.op} mixes positions along axis {wrong[0] if wrong else 'of a parameter'}")

    def _not_along(self, node: Node, axis: int) -> None:
        if node.op == "Trilu":  # keeps what lies before a diagonal, which padding does not move
            return
        axis %= self._rank(node.inputs[0])
        if any(axis in self._axes(name) for name in (*node.inputs, *node.outputs) if name):
            self.reject(node, f"{node.op} along axis {axis}")

    def _reshape(self, node: Node) -> None:
        """Padded elements must go to padded places: the same products of sizes before, between and after."""
        if self._segments(node.inputs[0]) != self._segments(node.outputs[0]):
            self.reject(node, f"{node.op} merges it with a dimension before it")

    def _segments(self, name: str) -> list[int]:
        shape, axes = self.graph.values[name].shape, self._axes(name)
        products = [1]
        for axis, size in enumerate(shape):
            if axis in axes:
                products.append(self.factors[name, axis])
            else:
                products[-1] *= size
        return products

    def _product(self, node: Node) -> None:
        """Products over a symbolic axis need zeros there in one factor."""
        for at, name in enumerate(node.inputs[:2]):
            rank = self._rank(name)
            if node.op == "Gemm":
                flipped = bool(node.attrs.get("transA" if at == 0 else "transB", 0))
                axis = (0 if flipped else 1) if at == 0 else (1 if flipped else 0)
            else:
                axis = rank - 1 if at == 0 else max(0, rank - 2)
            if axis in self._axes(name):
                other = node.inputs[1 - at]
                if at == 0 and not self._zero(name, axis) and not self._zero(other, self._contracted(node, other)):
                    self._mask(node, 0, axis, "zero")
                return

    def _contracted(self, node: Node, name: str) -> int:
        if node.op == "Gemm":
            return 1 if node.attrs.get("transB", 0) else 0
        return max(0, self._rank(name) - 2)

    def _zero(self, name: str, axis: int) -> bool:
        """True when padded positions along the axis are known to be zero: behind a masked Softmax."""
        node = self.producers.get(name)
        if node is None or not node.inputs[0]:
            return False
        if node.op == "Softmax":
            return Mask(node.name, 0, axis, "lowest") in self.found.masks
        if node.op in ("Dropout", "Identity", "Cast"):
            return self._zero(node.inputs[0], axis)
        if node.op == "Transpose":
            perm = [int(a) for a in node.attrs.get("perm") or reversed(range(self._rank(name)))]
            return self._zero(node.inputs[0], perm[axis])
        if node.op in RESHAPES:
            before, after = self._axes(node.inputs[0]), self._axes(name)
            return self._zero(node.inputs[0], before[after.index(axis)])
        return False

    def _mask(self, node: Node, at: int, axis: int, kind: MaskKind) -> None:
        value = self.graph.values[node.inputs[at]]
        if self.factors[value.name, axis] != 1 or value.dtype != "float32":
            self.reject(node, f"{node.op} mixes positions of a {value.dtype} tensor, which no mask is made for")
        self.found.masks.append(Mask(node.name, at, axis, kind))

    def _along(self, node: Node) -> None:
        rank = self._rank(node.inputs[0])
        flattens = node.op in ("Softmax", "LogSoftmax", "Hardmax") and self.graph.opset < 13
        default = 1 if flattens else 0 if node.op in ("ArgMax", "ArgMin") else -1
        axis = int(node.attrs.get("axis", default)) % rank
        if node.op == "CumSum":
            given = self.graph.constant(node.inputs[1])
            axis = int(given.reshape(-1)[0]) % rank if given is not None else -1
        mixed = range(axis, rank) if flattens else (axis,)
        along = [a for a in self._axes(node.inputs[0]) if a in mixed]
        if not along:
            return
        if node.op not in ("Softmax", "LogSoftmax") or along != [axis] or (flattens and axis != rank - 1):
            self.reject(node, f"{node.op} mixes positions along axis {along[0]}")
        self._mask(node, 0, axis, "lowest")

    def _reduce(self, node: Node) -> None:
        rank = self._rank(node.inputs[0])
        given = node.attrs.get("axes")
        if given is None and len(node.inputs) > 1:
            data = self.graph.constant(node.inputs[1])
            given = None if data is None else data.reshape(-1).tolist()
        if given is None or len(given) == 0:
            given = [] if node.attrs.get("noop_with_empty_axes") else list(range(rank))
        along = [axis for axis in self._axes(node.inputs[0]) if axis in [int(a) % rank for a in given]]
        if not along:
            return
        kinds: dict[str, MaskKind] = {"ReduceMean": "mean", "ReduceSum": "zero", "ReduceMax": "lowest"}
        if node.op not in kinds or len(along) > 1:
            self.reject(node, f"{node.op} mixes positions along axis {along[0]}")
        self._mask(node, 0, along[0], kinds[node.op])

    def _pick(self, node: Node) -> None:
        """Gather and Slice along the axis may only take its first element, which is always there."""
        self.found.splits &= not self._picks_first(node)

    def _picks_first(self, node: Node) -> bool:
        data = self._axes(node.inputs[0])
        if node.op == "Gather":
            axis = int(node.attrs.get("axis", 0)) % self._rank(node.inputs[0])
            if axis not in data:
                return False
            indices = self.graph.constant(node.inputs[1])
            if indices is None or np.any(indices != 0):
                self.reject(node, f"Gather along axis {axis} of other elements than the first")
            return True
        operands = [self.graph.constant(name) if name else None for name in node.inputs[1:]]
        operands += [None] * (4 - len(operands))
        starts = node.attrs.get("starts") if operands[0] is None else operands[0].reshape(-1).tolist()
        ends = node.attrs.get("ends") if operands[1] is None else operands[1].reshape(-1).tolist()
        if starts is None or ends is None:
            self.reject(node, "Slice with computed limits")
        axes = node.attrs.get("axes") if operands[2] is None else operands[2].reshape(-1).tolist()
        rank, picks = self._rank(node.inputs[0]), False
        for axis, start, end in zip(axes or range(len(starts)), starts, ends, strict=True):
            if int(axis) % rank in data:
                picks = True
                if int(start) != 0 or int(end) != 1:
                    self.reject(node, f"Slice along axis {int(axis) % rank} of other elements than the first")
        return picks


def _constant_along(data: np.ndarray, axis: int) -> bool:
    first = np.take(data, [0], axis)
    return np.array_equal(data, np.broadcast_to(first, data.shape), equal_nan=data.dtype.kind == "f")
