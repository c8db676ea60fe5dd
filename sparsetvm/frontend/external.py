"""External tensor data: the one place where a model names files, so nothing in it is believed.

A data file must be a regular file below the model's folder with one name only, reached without a symbolic link. It is
opened step by step from that folder without following links, checked through its descriptor and read through the same
one: what was checked is what is read, even if somebody exchanges files meanwhile.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx

from sparsetvm.errors import ModelError
from sparsetvm.frontend.limits import allow_memory
from sparsetvm.frontend.names import display_name

_KEYS = ("location", "offset", "length", "checksum")
_NUMBER = re.compile(r"-?[0-9]{1,20}")
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # a named pipe must not keep us waiting
_CHUNK = 1 << 20


def load_external_data(tensors: Iterable[onnx.TensorProto], folder: Path) -> list[tuple[str, bytes]]:
    """Bring external tensors into memory; (location, sha256) of each data file, sorted by location.

    Raises ModelError naming the tensor and its file for whatever is missing, unsafe or does not fit the tensor.
    """
    files: dict[str, _DataFile] = {}
    try:
        for tensor in tensors:
            if tensor.data_location != onnx.TensorProto.EXTERNAL:
                continue
            entries = _entries(tensor)
            location = entries["location"]
            if location not in files:
                files[location] = _DataFile(folder, location, tensor.name)
            offset, length = _checked_range(tensor, entries, files[location].size)
            tensor.raw_data = files[location].read(offset, length, tensor.name)
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]
        return [(location, files[location].digest()) for location in sorted(files)]
    finally:
        for file in files.values():
            os.close(file.descriptor)


def _error(tensor: str, location: str, what: str, hint: str | None = None) -> ModelError:
    message = f"external data of tensor '{display_name(tensor)}': file '{display_name(location)}' {what}"
    return ModelError(message, hint=hint)


def _entries(tensor: onnx.TensorProto) -> dict[str, str]:
    entries: dict[str, str] = {}
    for entry in tensor.external_data:
        if entry.key not in _KEYS or entry.key in entries:
            what = "is given twice" if entry.key in _KEYS else "is not known"
            raise ModelError(
                f"external data of tensor '{display_name(tensor.name)}': its key '{display_name(entry.key)}' {what}",
                hint="save the model again: onnx.save(model, path, save_as_external_data=True)",
            )
        entries[entry.key] = entry.value
    if not entries.get("location") or "\0" in entries["location"]:
        raise ModelError(f"external data of tensor '{display_name(tensor.name)}' names no file")
    return entries


class _DataFile:
    """An open data file. size: bytes; raises ModelError when it is not one that may be read."""

    def __init__(self, folder: Path, location: str, tensor: str) -> None:
        self.location = location
        self.descriptor = _open_below(folder, location, tensor)
        status = os.fstat(self.descriptor)
        self.size = status.st_size
        problem = ""
        if not stat.S_ISREG(status.st_mode):
            problem = "is not a regular file inside the model's folder"
        elif status.st_nlink > 1:
            problem = "has a second name (a hard link), which may lie outside the model's folder"
        if problem:
            os.close(self.descriptor)
            raise _error(tensor, location, problem, "copy the real file beside the model")

    def read(self, offset: int, length: int, tensor: str) -> bytes:
        allow_memory(length)
        pieces: list[bytes] = []
        while length:
            piece = os.pread(self.descriptor, length, offset)
            if not piece:
                raise _error(tensor, self.location, "became shorter while it was read", "copy the file again")
            pieces.append(piece)
            offset, length = offset + len(piece), length - len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def digest(self) -> bytes:
        digest = hashlib.sha256()
        os.lseek(self.descriptor, 0, os.SEEK_SET)
        while chunk := os.read(self.descriptor, _CHUNK):
            digest.update(chunk)
        return digest.digest()


def _open_below(folder: Path, location: str, tensor: str) -> int:
    """A descriptor of the file, which must lie below `folder` and be reached without a symbolic link."""
    parts = PurePosixPath(location).parts
    if PurePosixPath(location).is_absolute() or PureWindowsPath(location).anchor or ".." in parts or "\\" in location:
        raise _error(tensor, location, "lies outside the model's folder", "keep the data beside the model")
    step = -1
    try:
        step = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        for part in parts[:-1]:
            below = os.open(part, _OPEN | os.O_DIRECTORY, dir_fd=step)
            os.close(step)
            step = below
        return os.open(parts[-1] if parts else ".", _OPEN, dir_fd=step)
    except OSError as error:
        raise _unopened(folder, parts, location, tensor, error) from error
    finally:
        if step >= 0:
            os.close(step)


def _unopened(folder: Path, parts: tuple[str, ...], location: str, tensor: str, error: OSError) -> ModelError:
    links = [folder.joinpath(*parts[: i + 1]) for i in range(len(parts))]
    if error.errno == errno.ELOOP or (error.errno == errno.ENOTDIR and any(map(os.path.islink, links))):
        return _error(tensor, location, "is reached through a symbolic link", "copy the real file beside the model")
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        hint = f"copy it into the model's folder as '{display_name(location)}'"
        return _error(tensor, location, "is missing", hint)
    if error.errno in (errno.ENXIO, errno.ENODEV):
        return _error(tensor, location, "is not a regular file inside the model's folder")
    return _error(tensor, location, f"cannot be read: {error.strerror}", "check the file's name and rights")


def packed_bytes(tensor: onnx.TensorProto) -> int:
    """Bytes that the tensor's shape and type need. Raises ValueError when there is no such shape or type."""
    if any(dim < 0 for dim in tensor.dims):
        raise ValueError("a negative dimension")
    if tensor.data_type == onnx.TensorProto.STRING:
        raise ValueError("strings, which are not supported")
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"unknown data type {tensor.data_type}") from error
    bits = re.search(r"(?:int|float)([246])(?![0-9])", str(dtype))  # these are packed
    each = int(bits[1]) if bits else 8 * int(dtype.itemsize)
    return int(-(-math.prod(tensor.dims) * each // 8))


def _checked_range(tensor: onnx.TensorProto, entries: dict[str, str], available: int) -> tuple[int, int]:
    """(offset, length) in bytes: the tensor's shape says how many; offset, length and the file must allow them."""
    location = entries["location"]
    try:
        expected = packed_bytes(tensor)
    except ValueError as error:
        raise _error(tensor.name, location, f"belongs to a tensor with {error}") from error
    given = (entries.get("offset", "0"), entries.get("length", str(expected)))
    if not all(map(_NUMBER.fullmatch, given)):
        raise _error(tensor.name, location, "has an offset or length that is no number")
    offset, length = map(int, given)
    if offset < 0:
        raise _error(tensor.name, location, f"has the negative offset {offset}")
    if length != expected:
        what = f"is given with {length} bytes, but the tensor's shape needs {expected}"
        raise _error(tensor.name, location, what)
    if offset + length > available:
        what = f"is too short: bytes {offset} to {offset + length} of {available}"
        raise _error(tensor.name, location, what, "copy the file again: it may be truncated")
    return offset, length
