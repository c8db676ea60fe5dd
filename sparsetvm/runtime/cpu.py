"""A compiled model on a CPU: one function of its library, whose inputs lie in aligned memory that stays in place.

Small models run for a few microseconds, as long as some lines of Python: whatever does not depend on the values of a
run is done before it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from sparsetvm.core.buckets import Dynamic
from sparsetvm.core.manifest import TensorInfo, bucket_main
from sparsetvm.runtime.arrays import Buffer
from sparsetvm.runtime.buckets import Buckets, Run, Slot


class CpuRun:
    """Runs one function of a loaded library, one call at a time.

    inputs: memory of its first arguments. further: those behind them, tensors of TVM.
    """

    def __init__(self, function: Callable[..., Any], inputs: Sequence[Buffer], further: Sequence[Any] = ()) -> None:
        import tvm_ffi

        self._arrays = [buffer.array for buffer in inputs]
        self._tensor = tvm_ffi.Tensor
        self.call = functools.partial(function, *(buffer.tensor for buffer in inputs), *further)

    def __call__(self, arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """Copy in, run, copy out. arrays: of the shapes and dtypes of the inputs."""
        self.load(arrays)
        return [view.copy() for view in self.views()]

    def load(self, arrays: Sequence[np.ndarray]) -> None:
        """Copy in."""
        for own, given in zip(self._arrays, arrays):  # noqa: B905 - `strict` costs as much as the copy
            own[...] = given

    def views(self) -> list[np.ndarray]:
        """Run on what is in the memory; the results go back to TVM's pool when nobody holds them any more."""
        results = self.call()
        if isinstance(results, self._tensor):
            return [np.from_dlpack(results)]
        return [np.from_dlpack(result) for result in results]


class CpuRunOfAnyShape:
    """Runs a library without a manifest: a `CpuRun` for the shapes that come, kept while they stay the same."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._inputs: list[TensorInfo] = []
        self._run: CpuRun | None = None

    def __call__(self, arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """Copy in, run, copy out."""
        inputs = [TensorInfo("", array.shape, str(array.dtype)) for array in arrays]
        if self._run is None or inputs != self._inputs:
            self._run, self._inputs = CpuRun(self._function, buffers_for(arrays)), inputs
        return self._run(arrays)


class CpuBuckets(Buckets):
    """A library with buckets: each run goes straight to the functions of its buckets.

    The library's "main" does the same for programs without sparsetvm, with some more calls of the virtual machine.
    machine: TVM's virtual machine of the library.
    """

    def __init__(
        self, machine: Any, inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo], dynamic: Dynamic
    ) -> None:
        super().__init__(inputs, outputs, dynamic)
        self._machine = machine
        self._memory: dict[int, list[Buffer]] = {}

    def missing(self) -> str:
        """The function of a bucket that the library does not have, or has with other inputs; "" for none."""
        arity = self._machine.module["get_function_arity"]
        for bucket in self.dynamic.buckets:
            name = bucket_main(bucket)
            with suppress(RuntimeError, ValueError):  # TVM's errors for a name that is not there
                if arity(name) == len(self.tensors(bucket)[0]):
                    continue
            return name
        return ""

    def whole(self, bucket: int) -> Run:
        """The run of a bucket's own size."""
        return self._run(bucket, bucket)

    def slot(self, bucket: int, size: int) -> Slot:
        """The memory from which the bucket's function reads."""
        return [buffer.array for buffer in self._buffers(bucket)], self._run(bucket, size).views

    def _run(self, bucket: int, size: int) -> CpuRun:
        """Masks are filled here, once for all runs of this size."""
        masks = self.masks(bucket, size)
        memory = buffers_for(masks)
        for buffer, mask in zip(memory, masks, strict=True):
            buffer.array[...] = mask
        further = [buffer.tensor for buffer in memory]
        return CpuRun(self._machine[bucket_main(bucket)], self._buffers(bucket), further)

    def _buffers(self, bucket: int) -> list[Buffer]:
        if bucket not in self._memory:
            self._memory[bucket] = buffers([info.sized(bucket) for info in self.inputs])
        return self._memory[bucket]


def buffers(inputs: Sequence[TensorInfo]) -> list[Buffer]:
    """Memory for the inputs of a function."""
    return [Buffer(info.shape, info.dtype) for info in inputs]


def buffers_for(arrays: Sequence[np.ndarray]) -> list[Buffer]:
    """Memory like that of some arrays."""
    return [Buffer(array.shape, str(array.dtype)) for array in arrays]
