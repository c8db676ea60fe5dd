"""Fuse multi-head attention between its projections into one node.

Before:  q, k, v (B, S, H), or parts of the features of one value, in heads (B, heads, S, d); rotary embeddings of q and
         k; MatMul(q, k^T); scale; Add masks; Softmax; MatMul(p, v); back to (B, S, H)
After:   attention(rotary(q), rotary(k), v, mask) {heads, scale} on (B, S, H)

How heads are split and joined, and where the scale is, differs from exporter to exporter: moved_elements.py looks at
what becomes of the elements. The kernel keeps tokens in vector lanes, so neither the transposes nor the softmax move
data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sparsetvm.core.graph import SPARSETVM_DOMAIN, Graph, Node
from sparsetvm.core.target import Target
from sparsetvm.rewrite.canonical.edit import Uses, merged_origin
from sparsetvm.rewrite.moved_elements import Moved, moved_from, moved_to
from sparsetvm.rewrite.rotary import Turn, turned

_MOST_FEATURES_CUDA = 128  # of a head


def fuse_attention(graph: Graph, target: Target) -> bool:
    """Fuse every attention that has the shape above and that the kernel supports; returns whether anything changed."""
    changed = False
    sums: dict[tuple[str, ...], str] = {}  # masks that are added up already
    for softmax in [node for node in graph.nodes if node.is_op("Softmax")]:
        found = _match(graph, softmax)
        if found is not None and _supported(found, target) and _masks_fit(graph, found):
            _replace(graph, found, sums)
            changed = True
    if changed:
        graph.sort()
        graph.prune_dead()
    return changed


@dataclass(frozen=True)
class _Part:
    """Features `begin` and on of a value, whose tokens are its rows; turned afterwards."""

    source: str
    begin: int
    turn: Turn | None = None


@dataclass(frozen=True)
class _Attention:
    parts: tuple[_Part, _Part, _Part]
    masks: tuple[str, ...]
    scale: float
    shape: tuple[int, int, int, int]  # batch, heads, tokens, features of a head
    output: Node
    origin: tuple[str, ...]


def _match(graph: Graph, softmax: Node) -> _Attention | None:
    uses, shape = Uses(graph), graph.values[softmax.inputs[0]].shape
    axis = int(softmax.attrs.get("axis", -1 if graph.opset >= 13 else 1))
    if len(shape) != 4 or axis not in (-1, 3) or graph.values[softmax.inputs[0]].dtype != "float32":
        return None
    scores, masks = _unmasked(graph, uses, softmax.inputs[0])
    product, factor = _unscaled(graph, uses, scores)
    context = uses.sole_user(softmax.outputs[0])
    if product is None or context is None or not context.is_op("MatMul") or context.inputs[0] != softmax.outputs[0]:
        return None
    batch, heads, tokens, keys = shape
    out = graph.values[context.outputs[0]].shape
    if keys != tokens or out[:-1] != shape[:-1]:
        return None
    features = out[-1]
    places = np.arange(math.prod(out), dtype=np.int32).reshape(out).transpose(0, 2, 1, 3)
    output = moved_to(graph, uses, context.outputs[0], places.reshape(-1))
    names = (product.inputs[0], product.inputs[1], context.inputs[1])
    whole = (batch, tokens, heads, features)
    operands = [
        _operand(graph, uses, name, whole, order)
        for name, order in zip(names, ((0, 2, 1, 3), (0, 3, 1, 2), (0, 2, 1, 3)), strict=True)
    ]
    found = [operand for operand in operands if operand is not None]
    if output is None or len(found) != 3 or found[2][1] != 1.0:
        return None
    (query, first), (key, second), (value, _) = found
    origin = merged_origin([product, softmax, context])
    shape = (batch, heads, tokens, features)
    return _Attention((query, key, value), masks, factor * first * second, shape, output, origin)


def _unmasked(graph: Graph, uses: Uses, scores: str) -> tuple[str, tuple[str, ...]]:
    """The scores before masks are added, and the masks, the last first."""
    masks: list[str] = []
    while (add := _only(uses, scores, "Add")) is not None:
        whole = [
            name
            for name in add.inputs
            if graph.values[name].shape == graph.values[scores].shape
            and _only(uses, name, "Add", "MatMul", "Mul", "Div")
        ]
        if len(whole) != 1 or add.inputs[0] == add.inputs[1]:
            break
        masks.append(add.inputs[1] if add.inputs[0] == whole[0] else add.inputs[0])
        scores = whole[0]
    return scores, tuple(masks)


def _unscaled(graph: Graph, uses: Uses, scores: str) -> tuple[Node | None, float]:
    """The product of queries and keys, and the factor between it and the scores."""
    scaling = _only(uses, scores, "Div", "Mul")
    factor = 1.0
    if scaling is not None:
        constant = graph.constant(scaling.inputs[1])
        if constant is None or constant.size != 1:
            return None, factor
        number = float(constant.reshape(-1)[0])
        factor, scores = (1.0 / number if scaling.op == "Div" else number), scaling.inputs[0]
    return _only(uses, scores, "MatMul"), factor


def _only(uses: Uses, name: str, *ops: str) -> Node | None:
    """The node that computes `name` for one reader only."""
    node = uses.producer(name, *ops)
    return node if node is not None and uses.sole_user(name) is not None else None


def _operand(
    graph: Graph, uses: Uses, name: str, shape: tuple[int, int, int, int], order: tuple[int, int, int, int]
) -> tuple[_Part, float] | None:
    """The part of a value that an operand is, perhaps turned, and what it is multiplied by.

    shape: (batch, tokens, heads, features), to which `order` brings the operand's axes.
    """
    moved = moved_from(graph, uses, name)
    if moved is None or moved.elements.ndim != 4:
        return None
    part = _part(graph, moved, shape, order)
    if part is not None:
        return part, moved.factor
    batch, tokens, heads, features = shape
    places = np.arange(math.prod(shape), dtype=np.int32).reshape(batch, heads, tokens, features).transpose(0, 2, 1, 3)
    found = turned(graph, uses, moved.source) if np.array_equal(moved.elements.transpose(order), places) else None
    part = _part(graph, found[0], shape, (0, 2, 1, 3)) if found is not None else None
    if found is None or part is None:
        return None
    return _Part(part.source, part.begin, found[1]), moved.factor * found[0].factor


def _part(
    graph: Graph, moved: Moved, shape: tuple[int, int, int, int], order: tuple[int, int, int, int]
) -> _Part | None:
    """The part of a value that has been moved, when `order` brings its axes to (batch, tokens, heads, features)."""
    if moved.elements.ndim != 4:
        return None
    elements = moved.elements.transpose(order)
    all_features = graph.values[moved.source].shape[-1]
    batch, tokens, heads, features = shape
    if elements.shape != shape or math.prod(graph.values[moved.source].shape) != batch * tokens * all_features:
        return None
    begin = int(elements.flat[0]) if elements.size else 0
    rows = np.arange(batch * tokens, dtype=np.int32)[:, None] * all_features
    wanted = rows + np.arange(begin, begin + heads * features, dtype=np.int32)
    fits = begin + heads * features <= all_features and np.array_equal(elements.reshape(batch * tokens, -1), wanted)
    return _Part(moved.source, begin) if fits else None


def _supported(found: _Attention, target: Target) -> bool:
    """No vector of query tokens reaches over the end of a batch entry; on a GPU all scores fit into shared memory."""
    batch, _, tokens, features = found.shape
    if batch * tokens < target.lanes or (batch > 1 and tokens % target.lanes):
        return False
    if target.kind != "cuda":
        return True
    room = 4 * (16 * (tokens + 132) + 288 * features)
    return features <= _MOST_FEATURES_CUDA and room <= target.shared


def _masks_fit(graph: Graph, found: _Attention) -> bool:
    """True when each mask broadcasts to (batch, heads, tokens, tokens) from as many axes."""
    batch, heads, tokens, _ = found.shape
    full = (batch, heads, tokens)
    shapes = [graph.values[name].shape for name in found.masks]
    return all(
        len(mask) == 4 and mask[3] == tokens and all(d in (1, size) for d, size in zip(mask[:3], full, strict=True))
        for mask in shapes
    )


def _replace(graph: Graph, found: _Attention, sums: dict[tuple[str, ...], str]) -> None:
    batch, heads, tokens, features = found.shape
    shape = (batch, tokens, heads * features)
    made: list[Node] = []
    inputs = _operands(graph, found, shape, made)
    mask = _mask(graph, found, sums, made)
    out = graph.values[found.output.outputs[0]]
    result, wanted = out.name, graph.add_constant(f"{out.name}.shape", np.array(out.shape, np.int64))
    if out.shape != shape:
        result = graph.add_value(f"{out.name}.tokens", shape, out.dtype).name
    attrs = {"heads": heads, "scale": found.scale}
    name = found.origin[0]
    made.append(Node(name, "attention", [*inputs, *mask], [result], attrs, SPARSETVM_DOMAIN, found.origin))
    if out.shape != shape:
        made.append(Node(f"{name}.out", "Reshape", [result, wanted.name], [out.name], {}, origin=found.origin))
    at = graph.nodes.index(found.output)
    graph.nodes[at : at + 1] = made


def _operands(graph: Graph, found: _Attention, shape: tuple[int, int, int], made: list[Node]) -> list[str]:
    """Names of Q, K and V as (batch, tokens, features), by nodes that are added to `made` where there are none."""
    tokens: dict[str, str] = {}  # source -> the same as (batch, tokens, all features)
    names = []
    for part in found.parts:
        source = graph.values[part.source]
        whole = (*shape[:-1], source.shape[-1])
        if part.source not in tokens:
            tokens[part.source] = part.source
            if source.shape != whole:
                flat = graph.add_value(f"{part.source}.tokens", whole, source.dtype)
                wanted = graph.add_constant(f"{flat.name}.shape", np.array(whole, np.int64))
                made.append(
                    Node(flat.name, "Reshape", [part.source, wanted.name], [flat.name], {}, origin=found.origin)
                )
                tokens[part.source] = flat.name
        name = tokens[part.source]
        if whole != shape:
            cut = graph.add_value(f"{part.source}.part", shape, source.dtype)
            limits = [part.begin, part.begin + shape[-1], 2]
            constants = [graph.add_constant(f"{cut.name}.limit", np.array([limit], np.int64)).name for limit in limits]
            made.append(Node(cut.name, "Slice", [name, *constants], [cut.name], {}, origin=found.origin))
            name = cut.name
        if part.turn is not None:
            tables = {"cosines": part.turn.cosines, "sines": part.turn.sines}
            result = graph.add_value(f"{part.source}.turned", shape, source.dtype).name
            made.append(Node(result, "rotary", [name], [result], tables, SPARSETVM_DOMAIN, found.origin))
            name = result
        names.append(name)
    return names


def _mask(graph: Graph, found: _Attention, sums: dict[tuple[str, ...], str], made: list[Node]) -> list[str]:
    """The sum of all masks that are not zero everywhere, computed once for all layers that have the same."""
    masks = [name for name in found.masks if graph.constant(name) is None or np.any(graph.constant(name))]
    if len(masks) < 2:
        return masks
    key = tuple(masks)
    if key not in sums:
        total = masks[0]
        for name in masks[1:]:
            shapes = (graph.values[total].shape, graph.values[name].shape)
            both = graph.add_value(f"{total}.sum", np.broadcast_shapes(*shapes), "float32")
            made.append(Node(both.name, "Add", [total, name], [both.name], {}, origin=found.origin))
            total = both.name
        sums[key] = total
    return [sums[key]]
