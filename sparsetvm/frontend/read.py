"""Read an ONNX file and its external data into memory, trusting neither.

Checks of our own stand before those of `onnx` (>= 1.21): external data must be a regular file inside the model's
folder, reached without a symbolic link, and large enough for the tensor's shape.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import external_data_helper

from sparsetvm.errors import ModelError
from sparsetvm.frontend.names import display_name
from sparsetvm.frontend.text import invalid_string

_MAX_PROTO_BYTES = (1 << 31) - 1
_MODEL_FIELDS = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 14, 20, 25, 26, 27})
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_COPY_AGAIN = "copy or export the file again"


@dataclass
class ModelFile:
    """A parsed model with all tensor data in memory. `digest`: sha256 over the file and its external data files."""

    path: Path
    proto: onnx.ModelProto
    digest: str


def read_model(path: str | Path) -> ModelFile:
    """Parse the file and load external data. Raises ModelError for anything that is not a readable ONNX model."""
    path = Path(path)
    shown = display_name(str(path))
    if not path.is_file():
        raise ModelError(f"'{shown}' is not a file", hint="give the path of an .onnx file")
    try:
        if path.stat().st_size > _MAX_PROTO_BYTES:
            raise ModelError(
                f"'{shown}' is larger than 2 GiB, which protobuf cannot parse",
                hint="save it with external data: onnx.save(model, path, save_as_external_data=True)",
            )
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"'{shown}' cannot be read: {error.strerror}", hint="check the file's rights") from error
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(content)
    except DecodeError as error:
        raise _unparsable(shown, content) from error
    if not proto.HasField("graph"):
        raise ModelError(f"'{shown}' is not an ONNX model: it holds no graph", hint="give the path of an .onnx file")
    damaged = invalid_string(proto)
    if damaged:
        raise ModelError(f"'{shown}' is damaged: a text in it is no UTF-8 ({damaged})", hint=_COPY_AGAIN)
    digest = hashlib.sha256(content)
    del content
    for name, file_digest in _load_external_data(proto, path):
        digest.update(name.encode("utf-8", "surrogateescape") + b"\0" + file_digest)
    return ModelFile(path, proto, digest.hexdigest())


def _unparsable(shown: str, content: bytes) -> ModelError:
    """Walk the outermost protobuf fields to tell a cut-off model from a file of another kind."""
    other = ModelError(f"'{shown}' is not an ONNX file", hint="give the path of an .onnx file")
    position, fields = 0, 0
    while position < len(content):
        key, after_key = _varint(content, position)
        if key is None:
            break
        if key >> 3 not in _MODEL_FIELDS:
            return other
        kind = key & 7
        size: int | None
        if kind == _BYTES:
            size, after_key = _varint(content, after_key)
        elif kind == _VARINT:
            _, end = _varint(content, after_key)
            size = end - after_key
        else:
            size = {_FIXED64: 8, _FIXED32: 4}.get(kind)
            if size is None:
                return other
        if size is None:
            break
        position = after_key + size
        fields += 1
        if position > len(content):
            missing = position - len(content)
            if fields == 1:
                return ModelError(f"'{shown}' is not an ONNX file, or it is truncated", hint=_COPY_AGAIN)
            return ModelError(f"'{shown}' is truncated: {missing} more bytes are expected", hint=_COPY_AGAIN)
    return ModelError(f"'{shown}' is damaged or not an ONNX file: protobuf cannot parse it", hint=_COPY_AGAIN)


def _varint(content: bytes, position: int) -> tuple[int | None, int]:
    """Decode one protobuf varint; (None, end) when the content ends inside it."""
    value = shift = 0
    while position < len(content) and shift < 70:
        byte = content[position]
        value |= (byte & 0x7F) << shift
        position += 1
        shift += 7
        if not byte & 0x80:
            return value, position
    return None, position


def tensors_of(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a graph: initializers, sparse initializers, attributes, and those of its subgraphs."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterator[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("sparse_tensor"):
                yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
            if attribute.HasField("g"):
                yield from tensors_of(attribute.g)
            for graph in attribute.graphs:
                yield from tensors_of(graph)


def _load_external_data(proto: onnx.ModelProto, path: Path) -> list[tuple[str, bytes]]:
    """Load every external tensor; returns (location, sha256) of each data file, sorted by location."""
    folder = path.parent
    files: dict[str, Path] = {}
    tensors = list(tensors_of(proto.graph))
    for function in proto.functions:
        tensors.extend(_node_tensors(function.node))
    for tensor in tensors:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        if location not in files:
            files[location] = _checked_data_file(folder, location, tensor.name)
        length = _checked_length(tensor, entries, files[location])
        del tensor.external_data[:]
        for key, value in {"location": location, "offset": entries.get("offset", "0"), "length": str(length)}.items():
            tensor.external_data.add(key=key, value=value)
        try:
            external_data_helper.load_external_data_for_tensor(tensor, str(folder))
        except (ValueError, OSError, onnx.checker.ValidationError) as error:
            raise _external_error(tensor.name, location, f"cannot be read safely: {error}") from error
    return [(location, _file_digest(files[location])) for location in sorted(files)]


def _external_error(tensor: str, location: str, what: str, hint: str | None = None) -> ModelError:
    message = f"external data of tensor '{display_name(tensor)}': file '{display_name(location)}' {what}"
    return ModelError(message, hint=hint)


def _checked_data_file(folder: Path, location: str, tensor: str) -> Path:
    """The path of an external data file, which must lie in `folder` and be reached without a symbolic link."""
    relative = PurePosixPath(location)
    if not location or "\0" in location:
        raise ModelError(f"external data of tensor '{display_name(tensor)}' names no file")
    if relative.is_absolute() or PureWindowsPath(location).anchor or ".." in relative.parts or "\\" in location:
        raise _external_error(tensor, location, "lies outside the model's folder", "keep the data beside the model")
    file = folder / location
    step = folder
    for part in relative.parts:
        step = step / part
        if step.is_symlink():
            raise _external_error(
                tensor, location, "is reached through a symbolic link", "copy the real file beside the model"
            )
    if not file.exists():
        raise _external_error(
            tensor, location, "is missing", f"copy it into the model's folder as '{display_name(location)}'"
        )
    if not file.is_file() or not file.resolve().is_relative_to(folder.resolve()):
        raise _external_error(tensor, location, "is not a regular file inside the model's folder")
    return file


def _checked_length(tensor: onnx.TensorProto, entries: dict[str, str], file: Path) -> int:
    """Bytes to read: those of the tensor's shape, which offset, length and the size of the file must allow."""
    location = entries["location"]
    try:
        itemsize = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except (KeyError, TypeError) as error:
        raise _external_error(tensor.name, location, f"holds unknown data type {tensor.data_type}") from error
    if any(dim < 0 for dim in tensor.dims):
        raise _external_error(tensor.name, location, "belongs to a tensor with a negative dimension")
    expected = math.prod(tensor.dims) * itemsize
    try:
        offset = int(entries.get("offset", "0"))
        length = int(entries.get("length", str(expected)))
    except ValueError as error:
        raise _external_error(tensor.name, location, "has an offset or length that is no number") from error
    available = file.stat().st_size
    if length != expected:
        what = f"is given with {length} bytes, but the tensor's shape needs {expected}"
        raise _external_error(tensor.name, location, what)
    if offset < 0 or offset + length > available:
        what = f"is too short: bytes {offset} to {offset + length} of {available}"
        raise _external_error(tensor.name, location, what, "copy the file again: it may be truncated")
    return length


def _file_digest(file: Path) -> bytes:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.digest()
