"""Read an ONNX file and its external data (`external`) into memory, trusting neither.

Commands do that in a child process with little memory and time (`child`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]

from sparsetvm.errors import ModelError
from sparsetvm.frontend.child import Parcel, in_child
from sparsetvm.frontend.external import load_external_data
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
    size_of(path)
    try:
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
    for name, file_digest in load_external_data(_tensors_in(proto), path.parent):
        digest.update(name.encode("utf-8", "surrogateescape") + b"\0" + file_digest)
    return ModelFile(path, proto, digest.hexdigest())


def size_of(path: str | Path) -> int:
    """Bytes of a model file. Raises ModelError when it is no file or cannot be one that protobuf parses."""
    path = Path(path)
    shown = display_name(str(path))
    try:
        if not path.is_file():
            raise ModelError(f"'{shown}' is not a file", hint="give the path of an .onnx file")
        size = path.stat().st_size
    except OSError as error:
        raise ModelError(f"'{shown}' cannot be read: {error.strerror}", hint="check the file's rights") from error
    if size > _MAX_PROTO_BYTES:
        raise ModelError(
            f"'{shown}' is larger than 2 GiB, which protobuf cannot parse",
            hint="save it with external data: onnx.save(model, path, save_as_external_data=True)",
        )
    return size


def checked_digest(path: str | Path) -> str:
    """`ModelFile.digest`, the file parsed in a limited child process. Raises ModelError as `read_model` does."""
    digest: str = in_child(_packed_digest, os.fspath(path), size=size_of(path)).value
    return digest


def _packed_digest(path: str) -> Parcel:
    return Parcel(read_model(path).digest)


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


def _tensors_in(message: Any) -> Iterator[onnx.TensorProto]:
    """Every tensor in a protobuf message, wherever it is."""
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for item in [value] if isinstance(value, Message) else value:
                yield from _tensors_in(item)
