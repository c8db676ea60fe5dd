"""Give every activation a layout, so that data moves only where a kernel cannot read what another one wrote.

Before:  conv2d -> conv2d -> Add -> GlobalAveragePool           (all plain)
After:   convert -> conv2d -> conv2d -> Add -> GlobalAveragePool  (Planes from the first convolution to the pooling)

Rules: convolutions, pools and what is element-wise between them use Planes; products of more than a few tokens, layer
norm and attention between them use Tiled (HalfTiled where all multiply in float16: half_layers.py); everything else is
plain. All images of one size use the same planes, whose zero columns suffice for every convolution of that size but the
few that reach far: residuals then need no conversion. What only 1x1 convolutions, strided ones too, and residuals read
is stored as PlaneTiles, which has the same grid (not on a GPU). Where a batch of small images has as many as a vector
has lanes, convolutions use BatchTiles instead (lane_images.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec

from sparsetvm.core.graph import SPARSETVM_DOMAIN, Graph, Node, Value
from sparsetvm.core.layout import PLAIN, AnyLayout, BatchTiles, HalfTiled, Plain, Planes, PlaneTiles, Tiled, narrows
from sparsetvm.core.target import Target
from sparsetvm.rewrite.half_layers import half_layers, stays_half
from sparsetvm.rewrite.lane_images import layers_in_lanes
from sparsetvm.rewrite.plane_geometry import conv_layouts, depthwise_pad, plane_pads, required_pad
from sparsetvm.rewrite.resized_axes import resized_axes
from sparsetvm.rewrite.tokens import few_tokens, token_lanes, tokens_of

_UNARY = ("Relu", "Gelu", "Tanh", "Sigmoid")
_UNARY_OWN = ("Silu", "HardSwish", "Clip")
_NORMS = ("LayerNormalization", "RMSNormalization")
_POOLS = ("MaxPool", "AveragePool")
_RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity")
_IN_PLANES = ("Add", "Concat", "Mul", *_POOLS)
_GLOBAL_POOLS = ("GlobalAveragePool", "GlobalMaxPool")


def assign_layouts(graph: Graph, target: Target) -> bool:
    """Set `layout` of all values and insert "convert" and "alias" nodes; returns True."""
    _Assignment(graph, target).run()
    return True


class _Assignment:
    def __init__(self, graph: Graph, target: Target) -> None:
        self.graph = graph
        self.target = target
        self.pads = plane_pads(graph)
        self.consumers = graph.consumers()
        self.half = half_layers(graph, target)
        self.in_lanes = layers_in_lanes(graph, target)
        self.converted: dict[tuple[str, AnyLayout], str] = {}
        self.nodes: list[Node] = []

    def run(self) -> None:
        rules: dict[str, Callable[[Node], bool]] = {
            "matmul": self._matmul,
            "conv2d": self._conv,
            "depthwise_conv2d": self._depthwise,
            "attention": self._attention,
            "rotary": self._attention,
            "gather": self._gather,
            "gather_channels": self._gather_channels,
            "k_winners": self._k_winners,
            "pooled_conv2d": self._pooled_conv,
        }
        for node in self.graph.nodes:
            rule = rules.get(node.op) if node.domain == SPARSETVM_DOMAIN else None
            done = rule(node) if rule else self._other(node)
            if not done:
                node.inputs = [self._as(name, PLAIN) if name else "" for name in node.inputs]
            self.nodes.append(node)
        self.graph.outputs = [self._as(name, PLAIN) for name in self.graph.outputs]
        self.graph.nodes = self.nodes

    def _as(self, name: str, layout: AnyLayout) -> str:
        """Name of `name` in `layout`, converting at most once per layout; Tiled and Planes meet through plain."""
        value = self.graph.values[name]
        if value.layout == layout or value.is_constant:
            return name
        known = self.converted.get((name, layout))
        if known is not None:
            return known
        source = value.layout
        if not isinstance(source, Plain) and not isinstance(layout, Plain):
            planes = isinstance(source, Planes) and source.phases == (1, 1)
            into_lanes = isinstance(layout, BatchTiles) and (planes or isinstance(source, PlaneTiles))
            if not (planes and isinstance(layout, Planes)) and not into_lanes and not narrows(source, layout):
                name = self._as(name, PLAIN)
        out = self.graph.add_value(f"{name}.{type(layout).__name__.lower()}", value.shape, value.dtype)
        out.layout = layout
        self.nodes.append(Node(f"{out.name}", "convert", [name], [out.name], {}, SPARSETVM_DOMAIN, ()))
        self.converted[value.name, layout] = out.name
        return out.name

    def _set(self, node: Node, layout: AnyLayout) -> bool:
        for name in node.outputs:
            self.graph.values[name].layout = layout
        return True

    def _matmul(self, node: Node) -> bool:
        m, k = node.attrs["weight"].shape
        rows = tokens_of(self.graph, node)
        source: AnyLayout = PLAIN
        result: AnyLayout = PLAIN
        if rows > few_tokens(self.target):
            lanes = token_lanes(rows, self.target)
            source, result = Tiled(rows, k, lanes), Tiled(rows, m, lanes)
            if node.name in self.half:
                if self.half[node.name] or self.graph.values[node.inputs[0]].layout != source:
                    source = HalfTiled(rows, k, lanes)
                if stays_half(self.graph, node, self.consumers[node.outputs[0]], self.half):
                    result = HalfTiled(rows, m, lanes)
        node.inputs = [self._as(node.inputs[0], source), *(self._as(name, result) for name in node.inputs[1:])]
        return self._set(node, result)

    def _conv(self, node: Node) -> bool:
        if node.name in self.in_lanes:
            node.inputs = [self._into_lanes(name) for name in node.inputs]
            return self._set(node, self._lanes_of(node.outputs[0]))
        conv = node.attrs["conv"]
        batch, m = self.graph.values[node.outputs[0]].shape[:2]
        pad = max(self.pads.get((conv.out_height, conv.out_width), 0), required_pad(conv))
        source, planes = conv_layouts(conv, batch, m, pad, self.target.lanes)
        result: AnyLayout = planes
        own_grid = pad > self.pads.get((conv.out_height, conv.out_width), 0)  # readers in tiles cannot leave it
        if node.op == "conv2d" and not own_grid and self._read_by_tiles(node.outputs[0]):
            result = _tiles_of(planes)
        first = self.graph.values[node.inputs[0]]
        tiled = first.layout == _tiles_of(source) and node.op == "conv2d" and conv.pointwise
        residuals = [self._residual(name, planes) for name in node.inputs[1:]]
        node.inputs = [first.name if tiled else self._as(first.name, source), *residuals]
        return self._set(node, result)

    def _into_lanes(self, name: str) -> str:
        """Name of a value in lanes, with all the zeros that its readers need."""
        layout = self.graph.values[name].layout
        enough = isinstance(layout, BatchTiles) and layout.pad >= self._pad_in_lanes(name)
        return name if enough else self._as(name, self._lanes_of(name))

    def _lanes_of(self, name: str) -> BatchTiles:
        """Layout of a value, a batch of images, with one image per lane."""
        _, channels, height, width = self.graph.values[name].shape
        return BatchTiles(channels, height, width, self._pad_in_lanes(name), self.target.lanes)

    def _pad_in_lanes(self, name: str) -> int:
        """Zeros around the images of a value in lanes: as the convolutions need that read it, or what follows it."""
        need = 0
        for user in self.consumers[name]:
            if user.name in self.in_lanes and user.inputs[0] == name:
                need = max(need, depthwise_pad(user.attrs["conv"]))
            elif user.is_op(*_UNARY, "Add", "Mul") or user.is_op(*_UNARY_OWN, domain=SPARSETVM_DOMAIN):
                need = max(need, self._pad_in_lanes(user.outputs[0]))
        return need

    def _depthwise(self, node: Node) -> bool:
        planes = self._planes(self.graph.values[node.outputs[0]])
        source = self._planes(self.graph.values[node.inputs[0]])
        source = msgspec.structs.replace(source, pad=max(source.pad, depthwise_pad(node.attrs["conv"])))
        node.inputs = [self._as(node.inputs[0], source), *(self._as(name, planes) for name in node.inputs[1:])]
        return self._set(node, planes)

    def _residual(self, name: str, planes: Planes) -> str:
        """A residual may be in either layout of the output's grid."""
        if self.graph.values[name].layout == _tiles_of(planes):
            return name
        return self._as(name, planes)

    def _read_by_tiles(self, name: str) -> bool:
        """True when everything that reads the value can read plane tiles: 1x1 convolutions, and residuals of any.

        On a GPU nothing does: its blocks read whole rows of planes.
        """
        if self.target.kind == "cuda" or name in self.graph.outputs or not self.consumers[name]:
            return False
        return all(self._reads_tiles(user, name) for user in self.consumers[name])

    def _reads_tiles(self, user: Node, name: str) -> bool:
        """True when a node can read the value, an image, as plane tiles."""
        if user.name in self.in_lanes:
            return True
        if user.is_op("conv2d", domain=SPARSETVM_DOMAIN):
            return user.inputs[0] != name or bool(user.attrs["conv"].pointwise)
        # Zero columns that a pick writes come from zero columns that it reads.
        padded = self._planes(self.graph.values[name]).pad > 0
        passed_on = user.is_op("gather", domain=SPARSETVM_DOMAIN) or (is_pick(user) and padded)
        return passed_on and self._read_by_tiles(user.outputs[0])

    def _attention(self, node: Node) -> bool:
        """Of a rotary embedding, too: all but a mask are tokens."""
        shape = self.graph.values[node.inputs[0]].shape
        rows, cols = math.prod(shape[:-1]), shape[-1]
        tiled = Tiled(rows, cols, token_lanes(rows, self.target))
        node.inputs = [
            self._as(name, tiled) if at < 3 else self._as(name, PLAIN) for at, name in enumerate(node.inputs)
        ]
        return self._set(node, tiled)

    def _pooled_conv(self, node: Node) -> bool:
        """Reads images as they are, and writes planes."""
        first = self.graph.values[node.inputs[0]]
        whole = isinstance(first.layout, Planes) and first.layout.phases == (1, 1)
        node.inputs = [first.name if whole else self._as(first.name, PLAIN)]
        return self._set(node, self._planes(self.graph.values[node.outputs[0]]))

    def _k_winners(self, node: Node) -> bool:
        """Images stay in planes, and come from there in planes only where somebody reads planes."""
        first, out = (self.graph.values[name] for name in (node.inputs[0], node.outputs[0]))
        if node.attrs.get("axis") != 1 or len(first.shape) != 4:
            return False
        source = first.layout if isinstance(first.layout, Plain) else self._planes(first)
        node.inputs = [self._as(first.name, source)]
        users = self.consumers[out.name]
        spatial = any(user.is_op("conv2d", "depthwise_conv2d", domain=SPARSETVM_DOMAIN) for user in users)
        spatial = spatial or any(user.is_op(*_POOLS, *_GLOBAL_POOLS) for user in users)
        return self._set(node, self._planes(out) if spatial else PLAIN)

    def _gather(self, node: Node) -> bool:
        """Slices are gathered as they are, the batch outermost, or into the lanes of the layers behind."""
        out = node.outputs[0]
        if any(user.name in self.in_lanes for user in self.consumers[out]):
            return self._set(node, self._lanes_of(out))
        if isinstance(self.graph.values[node.inputs[0]].layout, BatchTiles):
            node.inputs = [self._as(node.inputs[0], PLAIN)]
        layout = self.graph.values[node.inputs[0]].layout
        if isinstance(layout, Planes | PlaneTiles):
            layout = msgspec.structs.replace(layout, batch=layout.batch * int(node.attrs["count"]))
        return self._set(node, layout)

    def _gather_channels(self, node: Node) -> bool:
        """Whole planes move."""
        node.inputs = [self._as(name, self._planes(self.graph.values[name])) for name in node.inputs]
        return self._set(node, self._planes(self.graph.values[node.outputs[0]]))

    def _planes(self, value: Value) -> Planes:
        batch, channels, height, width = value.shape
        return Planes(batch, channels, height, width, self.pads.get((height, width), 0), self.target.lanes)

    def _other(self, node: Node) -> bool:
        """Operators that follow the layout of their input."""
        first = self.graph.values[node.inputs[0]] if node.inputs and node.inputs[0] else None
        if first is None or first.dtype != "float32":
            return False
        out = self.graph.values[node.outputs[0]]
        if is_pick(node) and isinstance(first.layout, PlaneTiles) and self._reads_tiles(node, first.name):
            return self._set(node, _tiles_of(self._planes(out)))
        if isinstance(first.layout, BatchTiles) and node.is_op(*_POOLS) and pool_fits(node) and len(node.outputs) == 1:
            return self._set(node, self._lanes_of(out.name))
        if isinstance(first.layout, BatchTiles) and node.is_op(*_GLOBAL_POOLS):
            return self._set(node, PLAIN)
        if node.is_op(*_POOLS) and len(first.shape) == 4 and pool_fits(node) and len(node.outputs) == 1:
            node.inputs = [self._as(node.inputs[0], self._planes(first))]
            return self._set(node, self._planes(out))
        if node.is_op(*_GLOBAL_POOLS) and len(first.shape) == 4:
            node.inputs = [self._as(node.inputs[0], self._planes(first))]
            return self._set(node, PLAIN)
        if node.is_op(*_UNARY) or node.is_op(*_UNARY_OWN, domain=SPARSETVM_DOMAIN):
            return self._follow(node, first)
        if node.is_op("affine_channels", domain=SPARSETVM_DOMAIN):
            return self._affine(node, first)
        if node.is_op("Concat"):
            return self._concat(node)
        if node.is_op("Transpose"):
            return self._transpose(node, first)
        if node.is_op("Resize"):
            return self._resize(node, first)
        if node.is_op("Add", "Mul") and len(node.inputs) == 2:
            return self._scale_channels(node) or self._binary(node)
        if node.is_op(*_NORMS) and isinstance(first.layout, Tiled) and layer_norm_fits(node, first):
            return self._follow(node, first)
        same_features = out.shape[-1:] == first.shape[-1:]
        if node.is_op(*_RESHAPES) and isinstance(first.layout, Tiled) and same_features:
            node.op, node.domain, node.inputs, node.attrs = "alias", SPARSETVM_DOMAIN, [first.name], {}
            return self._set(node, first.layout)
        return False

    def _follow(self, node: Node, first: Value) -> bool:
        """Keep the input's layout. Planes must keep zero borders: only functions with f(0) = 0 run on whole planes."""
        padded = isinstance(first.layout, Planes) or (isinstance(first.layout, BatchTiles) and first.layout.pad)
        if padded and not _keeps_zero(node):
            return False
        return self._set(node, first.layout) and not isinstance(first.layout, Plain)

    def _affine(self, node: Node, first: Value) -> bool:
        """Planes and plain images; others go through plain ones."""
        layout = first.layout if isinstance(first.layout, Planes) else PLAIN
        node.inputs = [self._as(first.name, layout)]
        return self._set(node, layout)

    def _concat(self, node: Node) -> bool:
        """Images that are in planes for the most part are put together there."""
        values = [self.graph.values[name] for name in node.inputs]
        out = self.graph.values[node.outputs[0]]
        images = len(out.shape) == 4 and int(node.attrs["axis"]) % 4 == 1 and not any(v.is_constant for v in values)
        in_planes = sum(math.prod(v.shape) for v in values if isinstance(v.layout, Planes))
        if self.target.kind == "cuda" or not images or 2 * in_planes <= math.prod(out.shape):
            return False
        node.inputs = [self._as(value.name, self._planes(value)) for value in values]
        return self._set(node, self._planes(out))

    def _transpose(self, node: Node, first: Value) -> bool:
        """On a GPU, images in planes and their pixels as tokens are rows of channels, with zero columns or without."""
        perm, out = list(node.attrs.get("perm") or ()), self.graph.values[node.outputs[0]]
        if self.target.kind != "cuda" or len(first.shape) != 4:
            return False
        result: AnyLayout
        if perm == [0, 2, 3, 1] and isinstance(first.layout, Planes):
            tokens = math.prod(out.shape[:-1])
            result = Tiled(tokens, out.shape[-1], token_lanes(tokens, self.target))
            if tokens <= few_tokens(self.target):
                return False
        elif perm == [0, 3, 1, 2] and type(first.layout) is Tiled:
            result = self._planes(out)
        else:
            return False
        node.op, node.domain, node.attrs = "transpose_images", SPARSETVM_DOMAIN, {}
        return self._set(node, result)

    def _resize(self, node: Node, first: Value) -> bool:
        """From planes or plain images, to planes where something that works in planes reads the result."""
        if not isinstance(first.layout, Planes | Plain) or resized_axes(self.graph, node, self.target) is None:
            return False
        out = node.outputs[0]
        planes = any(user.domain == SPARSETVM_DOMAIN or user.op in _IN_PLANES for user in self.consumers[out])
        return self._set(node, self._planes(self.graph.values[out]) if planes else PLAIN)

    def _scale_channels(self, node: Node) -> bool:
        """An image in planes times one factor for each of its channels, as after squeeze-and-excitation."""
        values = [self.graph.values[name] for name in node.inputs]
        image, factors = sorted(values, key=lambda value: -math.prod(value.shape))
        per_channel = len(image.shape) == 4 and factors.shape == (*image.shape[:2], 1, 1) != image.shape
        if node.op != "Mul" or not per_channel or not isinstance(image.layout, Planes):
            return False
        node.op, node.domain = "scale_channels", SPARSETVM_DOMAIN
        node.inputs = [image.name, self._as(factors.name, PLAIN)]
        return self._set(node, image.layout)

    def _binary(self, node: Node) -> bool:
        left, right = (self.graph.values[name] for name in node.inputs)
        if left.shape != right.shape or left.is_constant or right.is_constant:
            return False
        layout = left.layout if not isinstance(left.layout, Plain) else right.layout
        if isinstance(layout, Plain):
            return False
        node.inputs = [self._as(left.name, layout), self._as(right.name, layout)]
        return self._set(node, layout)


def _tiles_of(planes: Planes) -> PlaneTiles:
    return PlaneTiles(planes.batch, planes.channels, planes.height, planes.width, planes.pad, planes.lanes)


def pool_fits(node: Node) -> bool:
    """True for pools that the planes kernel implements: 2-D, floor mode, no dilation, padding below the window."""
    attrs = node.attrs
    kernel = attrs["kernel_shape"]
    pads = attrs.get("pads") or [0, 0, 0, 0]
    dilations = attrs.get("dilations") or [1, 1]
    return (
        len(kernel) == 2
        and not attrs.get("ceil_mode", 0)
        and not attrs.get("storage_order", 0)
        and attrs.get("auto_pad", "NOTSET") in ("NOTSET", "VALID")
        and all(int(d) == 1 for d in dilations)
        and all(int(p) < int(k) for p, k in zip(pads, [*kernel, *kernel], strict=True))
    )


def is_pick(node: Node) -> bool:
    """True for a pool of one pixel, which takes every n-th one."""
    attrs = node.attrs
    return (
        node.is_op("AveragePool")
        and list(attrs["kernel_shape"]) == [1, 1]
        and bool(attrs.get("strides"))
        and not any(attrs.get("pads") or ())
        and pool_fits(node)
    )


def layer_norm_fits(node: Node, value: Value) -> bool:
    """True for a norm over the last axis."""
    return int(node.attrs.get("axis", -1)) in (-1, len(value.shape) - 1) and len(node.outputs) == 1


def _keeps_zero(node: Node) -> bool:
    if node.op == "Clip":
        return float(node.attrs["low"]) <= 0.0 <= float(node.attrs["high"])
    return node.op != "Sigmoid"
