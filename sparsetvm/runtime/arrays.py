"""Arrays that a compiled model is given and gives back: checked, aligned, of the size of the run."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsetvm.core.buckets import Dynamic
from sparsetvm.core.manifest import TensorInfo
from sparsetvm.errors import UsageError

if TYPE_CHECKING:
    from sparsetvm.runtime.module import Module

_ALIGNMENT = 64  # bytes; generated code uses aligned vector loads
_MOST_SIZES = 256  # whose shapes are kept
_least, _most = np.minimum.reduce, np.maximum.reduce  # array.min() takes twice as long for some ids


class Buffer:
    """An aligned tensor with a numpy view of the same memory."""

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        import tvm_ffi

        bytes_needed = math.prod(shape) * np.dtype(dtype).itemsize
        raw = np.zeros(bytes_needed + _ALIGNMENT, np.uint8)
        start = -raw.ctypes.data % _ALIGNMENT
        self.array = raw[start : start + bytes_needed].view(dtype).reshape(shape)
        self.tensor = tvm_ffi.from_dlpack(self.array)


class Checks:
    """Checks the arrays that runs are given; quick for arrays like those of the run before.

    keep: what it is true for stays as it is.

    """

    def __init__(
        self, inputs: Sequence[TensorInfo], dynamic: Dynamic | None, keep: Callable[[Any], bool] | None = None
    ) -> None:
        self._inputs, self._dynamic, self._keep = list(inputs), dynamic, keep
        self._sized: dict[int, list[TensorInfo]] = {}
        self._last: list[tuple[np.dtype, tuple[int, ...]]] = []  # of the arrays that passed last

    def __call__(self, arrays: Sequence[Any]) -> Sequence[Any]:
        """The arrays, one for each input, as numpy arrays without a copy where possible.

        Raises UsageError that names the input, what is expected and what was given.
        """
        last = self._last
        if last:
            for array, (dtype, shape) in zip(arrays, last):  # noqa: B905 - `strict` would cost a third of it
                if array.__class__ is not np.ndarray or array.dtype != dtype or array.shape != shape:
                    break
            else:
                return arrays
        infos = self._infos(arrays)
        found = [
            array if self._keep is not None and self._keep(array) else as_array(array, info)
            for array, info in zip(arrays, infos, strict=True)
        ]
        if all(info.dtype for info in infos):
            self._last = [(np.dtype(info.dtype), info.shape) for info in infos]
        return found

    def _infos(self, arrays: Sequence[Any]) -> list[TensorInfo]:
        """What the inputs must be in a run of the size that the arrays have."""
        if self._dynamic is None:
            return self._inputs
        size = size_of_run(self._inputs, self._dynamic, [shape_of(array) for array in arrays])
        infos = self._sized.get(size)
        if infos is None:
            if len(self._sized) >= _MOST_SIZES:
                self._sized.clear()
            infos = self._sized[size] = [info.sized(size) for info in self._inputs]
        return infos


class RangeChecks(Checks):
    """`Checks`, and the values of integer inputs that have a known range: a minimum and a maximum for each of them.

    A class of its own, so that calls of models without such inputs take no longer. What lies on a GPU is not looked at.
    """

    def __init__(
        self, inputs: Sequence[TensorInfo], dynamic: Dynamic | None, keep: Callable[[Any], bool] | None = None
    ) -> None:
        super().__init__(inputs, dynamic, keep)
        self._ranges = [(at, info.name, info.range) for at, info in enumerate(inputs) if info.range is not None]

    def __call__(self, arrays: Sequence[Any]) -> Sequence[Any]:
        """As `Checks`; raises UsageError that names the input, the value and the range."""
        found = super().__call__(arrays)
        for at, name, (low, high) in self._ranges:
            array = found[at]
            if isinstance(array, np.ndarray) and (_least(array, None) < low or _most(array, None) > high):
                raise _out_of_range(name, array, low, high)
        return found


def checks_of(
    inputs: Sequence[TensorInfo], dynamic: Dynamic | None, keep: Callable[[Any], bool] | None = None
) -> Checks:
    """The checks that these inputs need."""
    kind = Checks if all(info.range is None for info in inputs) else RangeChecks
    return kind(inputs, dynamic, keep)


def _out_of_range(name: str, array: np.ndarray, low: int, high: int) -> UsageError:
    at = np.unravel_index(int(np.argmax((array < low) | (array > high))), array.shape)
    where = f" at {[int(place) for place in at]}" if at else ""
    return UsageError(
        f"input '{name}': the value {int(array[at])}{where} is out of range, the model takes {low} to {high}",
        hint="they are numbers of table rows, such as ids of tokens: give those that belong to this model",
    )


def random_arrays(tensors: Iterable[TensorInfo], seed: int = 0) -> dict[str, np.ndarray]:
    """Standard normal values for float tensors; for others whole numbers below `random_below`, zeros where there is
    none (they may be indices). Of 0 and 1 every row along the last axis has at least one 1: masks hide no whole row.
    """
    rng = np.random.default_rng(seed)
    return {info.name: _random_array(info, rng) for info in tensors}


def _random_array(info: TensorInfo, rng: np.random.Generator) -> np.ndarray:
    if np.dtype(info.dtype).kind == "f":
        return rng.standard_normal(info.shape).astype(info.dtype)
    if info.random_below is None:
        return np.zeros(info.shape, info.dtype)
    drawn = rng.integers(0, info.random_below, info.shape, np.uint64 if info.dtype == "uint64" else np.int64)
    if info.random_below == 2 and info.shape:
        seen = rng.integers(0, info.shape[-1], (*info.shape[:-1], 1))
        np.put_along_axis(drawn, seen, 1, axis=-1)
    return np.asarray(drawn).astype(info.dtype)


def size_of_run(inputs: Sequence[TensorInfo], dynamic: Dynamic, shapes: Sequence[tuple[int, ...]]) -> int:
    """The size of the open dimension that the inputs have. Raises UsageError for inputs that do not agree, for none,
    and for more than the model can run.
    """
    size, first = 0, ""
    for info, shape in zip(inputs, shapes, strict=True):
        if info.axis is None:
            continue
        if len(shape) != len(info.shape):
            raise UsageError(
                f"input '{info.name}': expected {shown_dims(info, dynamic)}, given {_dims(tuple(shape))}",
                hint=f"{dynamic.name} may be of any size, the other dimensions are fixed",
            )
        if not first:
            size, first = int(shape[info.axis]), info.name
        elif shape[info.axis] != size:
            raise UsageError(
                f"input '{info.name}' has {shape[info.axis]} in dimension '{dynamic.name}', input '{first}' has {size}",
                hint="give all inputs the same size there",
            )
    return checked_size(size, dynamic)


def checked_size(size: int, dynamic: Dynamic) -> int:
    """`size` when the model can run it, else UsageError."""
    if size < 1:
        raise UsageError(f"dimension '{dynamic.name}' of size {size}", hint="give at least one sample or token")
    if dynamic.limit is not None and size > dynamic.limit:
        raise UsageError(
            f"dimension '{dynamic.name}' of size {size}: the model was compiled for up to {dynamic.limit}",
            hint=f"compile it again with --buckets up to {size}, or cut the input",
        )
    return size


def size_of_shapes(module: Module, shapes: Mapping[str, tuple[int, ...]] | None) -> int | None:
    """What `--shape` says of the open dimension of a loaded model; None when nothing is said."""
    if not shapes:
        return None
    infos = {info.name: info for info in module.inputs}
    for name, shape in shapes.items():
        if name not in infos:
            raise UsageError(f"--shape {name}: the model has no such input", hint=f"its inputs are {', '.join(infos)}")
        if module.dynamic is None and shape != infos[name].shape:
            raise UsageError(
                f"--shape {name}={_dims(shape)}: '{module.path}' was compiled for {_dims(infos[name].shape)}",
                hint="compile the model with --buckets to run other sizes",
            )
    if module.dynamic is None:
        return None
    given = [info for info in module.inputs if info.name in shapes and info.axis is not None]
    if not given:
        return None
    size = size_of_run(given, module.dynamic, [shapes[info.name] for info in given])
    for name, shape in shapes.items():
        if shape != infos[name].sized(size).shape:
            raise UsageError(
                f"--shape {name}={_dims(shape)}: the model takes {shown_dims(infos[name], module.dynamic)}",
                hint=f"only '{module.dynamic.name}' may be of any size",
            )
    return size


def shape_of(array: Any) -> tuple[int, ...]:
    """The shape of an array, of whatever library, or of nested lists."""
    return tuple(int(size) for size in array.shape) if hasattr(array, "shape") else np.shape(array)


def as_array(value: Any, info: TensorInfo) -> np.ndarray:
    """`value` as a numpy array without a copy where possible, checked against `info` (shape and dtype, when known)."""
    if isinstance(value, np.ndarray):
        array = value
    elif hasattr(value, "__dlpack__"):
        try:
            array = np.from_dlpack(value)
        except (RuntimeError, BufferError, TypeError) as error:
            raise UsageError(
                f"input '{info.name}': this array cannot be read on the CPU: {error}", hint="move it to the CPU first"
            ) from error
    else:
        array = np.asarray(value)
    if not info.dtype:
        return array
    if array.dtype != _dtype(info.dtype):
        raise UsageError(
            f"input '{info.name}': expected {info.dtype}, given {array.dtype}",
            hint=f"convert it: array.astype('{info.dtype}')",
        )
    if array.shape != info.shape:
        raise UsageError(
            f"input '{info.name}': expected shape {_dims(info.shape)}, given {_dims(array.shape)}",
            hint="shapes are fixed when the model is compiled; compile again with --shape for another one",
        )
    return array


@functools.cache
def _dtype(name: str) -> np.dtype[Any]:
    """The numpy type: comparing an array's with a name takes as long as a small kernel."""
    return np.dtype(name)


def _dims(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) if shape else "scalar"


def shown_dims(info: TensorInfo, dynamic: Dynamic | None) -> str:
    """The shape of a tensor with the name of the open dimension in its place: "batchx3x224x224"."""
    return "x".join(dynamic.name if dynamic and at == info.axis else str(d) for at, d in enumerate(info.shape))
