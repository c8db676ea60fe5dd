"""Packed weights beside a library: one file of arrays, mapped into memory, so that processes share its pages.

The manifest says where each array lies. Both are as hostile as any file: nothing is read beyond the end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from sparsetvm.errors import ModelError

ALIGNMENT = 64  # bytes; generated code uses aligned vector loads
_DTYPES = ("float32", "float16", "int32", "int16", "int8", "uint8", "uint16", "uint32", "int64")


class WeightArray(msgspec.Struct, frozen=True):
    """Where one array lies: its shape, numpy dtype name and first byte."""

    shape: tuple[int, ...]
    dtype: str
    offset: int


class WeightsFile(msgspec.Struct, frozen=True):
    """Of a manifest: the name of the file beside the library, its SHA-256, its arrays in the order of the arguments."""

    file: str
    sha256: str
    arrays: tuple[WeightArray, ...]


def weights_path(library: Path) -> Path:
    """Where the weights of a library stand: m.so -> m.so.weights."""
    return library.with_name(library.name + ".weights")


def write_weights(path: Path, arrays: Sequence[np.ndarray]) -> list[WeightArray]:
    """Write the arrays one after the other, each at a multiple of ALIGNMENT."""
    placed: list[WeightArray] = []
    with path.open("wb") as file:
        for array in arrays:
            file.write(b"\0" * (-file.tell() % ALIGNMENT))
            placed.append(WeightArray(array.shape, str(array.dtype), file.tell()))
            file.write(np.ascontiguousarray(array).tobytes())
    return placed


def map_weights(path: Path, arrays: Sequence[WeightArray]) -> list[np.ndarray]:
    """The arrays, mapped: pages are read when they are used, and shared with other processes.

    Raises ModelError when the file is not there or an array does not lie in it.
    """
    try:
        size = path.stat().st_size
        # Copy on write: DLPack wants memory that may be written. Nobody does.
        whole = np.memmap(path, np.uint8, "c") if size else np.zeros(0, np.uint8)
    except OSError as error:
        raise ModelError(
            f"cannot read the weights '{path}': {error.strerror}", hint="copy the .so.weights along with the .so"
        ) from error
    found = []
    for array in arrays:
        nbytes = math.prod(array.shape) * (np.dtype(array.dtype).itemsize if array.dtype in _DTYPES else 0)
        inside = array.offset >= 0 and array.offset % ALIGNMENT == 0 and array.offset + nbytes <= size
        if array.dtype not in _DTYPES or min(array.shape, default=1) < 1 or not inside:
            raise ModelError(f"'{path}' does not hold what the manifest says", hint="compile the model again")
        found.append(whole[array.offset : array.offset + nbytes].view(array.dtype).reshape(array.shape))
    return found
