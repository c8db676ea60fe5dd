"""A loaded model as plain values and arrays, and back: what a limited child sends to the process that asked for it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from sparsetvm.core.graph import Graph, Node, Value
from sparsetvm.frontend.child import Parcel, in_child
from sparsetvm.frontend.load import LoadedModel, load_model, load_symbolic_dims
from sparsetvm.frontend.read import size_of

_ARRAY = 1  # MessagePack extension: the number of an array


class _Value(msgspec.Struct):
    name: str
    shape: tuple[int, ...]
    dtype: str
    data: int | None


class _Node(msgspec.Struct):
    name: str
    op: str
    inputs: list[str]
    outputs: list[str]
    attrs: dict[str, Any]
    domain: str
    origin: tuple[str, ...]


class _Model(msgspec.Struct):
    name: str
    opset: int
    nodes: list[_Node]
    values: list[_Value]
    inputs: list[str]
    outputs: list[str]
    digest: str
    notes: list[str]
    symbolic: dict[str, dict[str, int]]


def load_limited(
    path: str | Path,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    sizes: Mapping[str, int] | None = None,
) -> LoadedModel:
    """`load_model`, the file parsed in a child process with little memory and time."""
    given = {name: list(shape) for name, shape in (shapes or {}).items()}
    parcel = in_child(packed_model, os.fspath(path), given, dict(sizes or {}), size=size_of(path))
    return _unpack(parcel, Path(path))


def symbolic_dims_limited(
    path: str | Path, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, dict[str, list[int]]]:
    """`load_symbolic_dims` in such a child."""
    given = {name: list(shape) for name, shape in (shapes or {}).items()}
    parcel = in_child(packed_dims, os.fspath(path), given, size=size_of(path))
    return msgspec.msgpack.decode(parcel.value, type=dict[str, dict[str, list[int]]])


def packed_model(path: str, shapes: Mapping[str, list[int]], sizes: Mapping[str, int]) -> Parcel:
    """What the child does."""
    return pack(load_model(path, {name: tuple(shape) for name, shape in shapes.items()}, sizes))


def packed_dims(path: str, shapes: Mapping[str, list[int]]) -> Parcel:
    """What the child does that only looks at the inputs."""
    found = load_symbolic_dims(path, {name: tuple(shape) for name, shape in shapes.items()})
    return Parcel(msgspec.msgpack.encode(found), [])


def pack(loaded: LoadedModel) -> Parcel:
    """The model as a parcel; only what the frontend sets in a graph is kept."""
    arrays: list[np.ndarray] = []

    def number(array: np.ndarray) -> int:
        arrays.append(array)
        return len(arrays) - 1

    def extension(value: Any) -> msgspec.msgpack.Ext:
        if isinstance(value, np.ndarray):
            return msgspec.msgpack.Ext(_ARRAY, number(value).to_bytes(8, "little"))
        raise TypeError(f"an attribute of type {type(value).__name__}")

    graph = loaded.graph
    model = _Model(
        graph.name,
        graph.opset,
        [_Node(n.name, n.op, n.inputs, n.outputs, n.attrs, n.domain, n.origin) for n in graph.nodes],
        [_Value(v.name, v.shape, v.dtype, None if v.data is None else number(v.data)) for v in graph.values.values()],
        graph.inputs,
        graph.outputs,
        loaded.digest,
        loaded.notes,
        loaded.symbolic,
    )
    value = msgspec.msgpack.encode(model, enc_hook=extension)
    return Parcel(value, arrays)


def _unpack(parcel: Parcel, path: Path) -> LoadedModel:
    def array(code: int, data: memoryview) -> np.ndarray:
        if code != _ARRAY:
            raise ValueError(f"extension {code}")
        return parcel.arrays[int.from_bytes(data, "little")]

    model = msgspec.msgpack.decode(parcel.value, type=_Model, ext_hook=array)
    values = {
        v.name: Value(v.name, v.shape, v.dtype, None if v.data is None else parcel.arrays[v.data]) for v in model.values
    }
    nodes = [Node(n.name, n.op, n.inputs, n.outputs, n.attrs, n.domain, n.origin) for n in model.nodes]
    graph = Graph(model.name, model.opset, nodes, values, model.inputs, model.outputs)
    return LoadedModel(graph, path, model.digest, model.notes, model.symbolic)
