"""A model with an open dimension: the run of each bucket, put together for runs of any size.

A run of a bucket's size goes straight to that bucket. For any other size the inputs are cut into slices, the last one
filled up with copies of the last position, and the results are joined.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sparsetvm.core.buckets import Dynamic, pieces
from sparsetvm.core.manifest import TensorInfo

_MOST_SIZES = 256  # whose runs are kept

Run = Callable[[Sequence[Any]], Sequence[Any]]
"""Copy in, run, copy out, on arrays that were checked."""
Slot = tuple[Sequence[np.ndarray], Callable[[], Sequence[np.ndarray]]]
"""Memory for the inputs of a bucket, and the call that runs it on them."""
_Index = tuple[slice, ...]


class Buckets:
    """What a run is for a model of one size; one call at a time. Subclasses know the device."""

    def __init__(self, inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo], dynamic: Dynamic) -> None:
        self.inputs, self.outputs, self.dynamic = list(inputs), list(outputs), dynamic
        self._runs: dict[int, Run] = {}
        self._where = next((at, info.axis) for at, info in enumerate(self.inputs) if info.axis is not None)

    def __call__(self, arrays: Sequence[Any]) -> Sequence[Any]:
        """Copy in, run, copy out."""
        return self.sized(self.size(arrays))(arrays)

    def sized(self, size: int) -> Run:
        """The run on inputs of one size."""
        run = self._runs.get(size)
        if run is None:
            if len(self._runs) >= _MOST_SIZES:
                self._runs.clear()
            run = self._runs[size] = self.whole(size) if size in self.dynamic.buckets else self._joined(size)
        return run

    def size(self, arrays: Sequence[Any]) -> int:
        """The size that the open dimension has in `arrays`."""
        at, axis = self._where
        return int(arrays[at].shape[axis])

    def tensors(self, bucket: int) -> tuple[list[TensorInfo], list[TensorInfo]]:
        """Inputs, masks among them, and outputs of the function of one bucket."""
        masks = [TensorInfo("", mask.shape, "float32") for mask in self.masks(bucket, bucket)]
        return [*(info.sized(bucket) for info in self.inputs), *masks], [info.sized(bucket) for info in self.outputs]

    def masks(self, bucket: int, size: int) -> list[np.ndarray]:
        """The last inputs of a bucket's function for a run of `size` positions."""
        return [mask.values(bucket, size) for mask in self.dynamic.masks] if bucket > 1 else []

    def whole(self, bucket: int) -> Run:
        """The run of a bucket's own size."""
        raise NotImplementedError

    def slot(self, bucket: int, size: int) -> Slot:
        """Where a bucket runs a piece of `size` positions. Slots of a bucket may share their memory."""
        raise NotImplementedError

    def on_host(self, array: Any) -> np.ndarray:
        """An array that can be cut into slices here."""
        return np.asarray(array)

    def _joined(self, size: int) -> Run:
        parts = [_Part(self, bucket, at, size) for bucket, at in pieces(self.dynamic, size)]
        shapes = [(info.sized(size).shape, np.dtype(info.dtype)) for info in self.outputs]

        def run(arrays: Sequence[Any]) -> Sequence[Any]:
            host = [self.on_host(array) for array in arrays]
            whole = [np.empty(shape, dtype) for shape, dtype in shapes]
            for part in parts:
                part.run(host, whole)
            return whole

        return run


class _Part:
    """One piece of a run of `size` positions: those from `at` on, as many as are left, in a bucket.

    All indices are made once, for they cost as much as the copies of small arrays.
    """

    def __init__(self, buckets: Buckets, bucket: int, at: int, size: int) -> None:
        memory, self._call = buckets.slot(bucket, size)
        count = min(bucket, size - at)
        self._cuts: list[tuple[int, np.ndarray, _Index]] = []  # input number, a part of the slot, what is copied there
        for number, (own, info) in enumerate(zip(memory, buckets.inputs, strict=True)):
            axis = info.axis
            self._cuts.append((number, own[_along(axis, 0, count)], _along(axis, at, at + count)))
            if axis is not None and count < bucket:
                self._cuts.append((number, own[_along(axis, count, bucket)], _along(axis, size - 1, size)))
        self._joins = [
            (_along(info.axis, at, at + count), _along(info.axis, 0, count)) for info in buckets.outputs
        ]  # where the results go, what of them

    def run(self, arrays: Sequence[np.ndarray], whole: Sequence[np.ndarray]) -> None:
        """Cut the slices out of `arrays`, run, put the results into `whole`."""
        for number, own, index in self._cuts:
            own[...] = arrays[number][index]
        for out, result, (there, part) in zip(whole, self._call(), self._joins, strict=True):
            out[there] = result[part]


def _along(axis: int | None, begin: int, end: int) -> _Index:
    """The index of a slice along an axis, of everything without one."""
    return () if axis is None else (*(slice(None),) * axis, slice(begin, end))
