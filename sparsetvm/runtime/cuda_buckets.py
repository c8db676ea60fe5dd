"""A model with an open dimension on a GPU: one CUDA graph for each bucket, put together for runs of any size.

A run of a bucket's size goes straight to that bucket. Any other size passes through host memory, where its inputs are
cut into slices (the last one filled up with copies of the last position) and its results are joined.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sparsetvm.core.buckets import Dynamic, pieces
from sparsetvm.core.manifest import TensorInfo, bucket_main
from sparsetvm.runtime.arrays import shape_of, size_of_run
from sparsetvm.runtime.cuda import CudaRun, on_gpu

Open = Callable[[str, Sequence[TensorInfo], Sequence[TensorInfo]], CudaRun]


class CudaBuckets:
    """What `CudaRun` is for a model of one size. `open_run`: (function, inputs, outputs) -> the run of one bucket."""

    def __init__(
        self, open_run: Open, inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo], dynamic: Dynamic
    ) -> None:
        self._open, self._inputs, self._outputs, self._dynamic = open_run, list(inputs), list(outputs), dynamic
        self._runs: dict[int, CudaRun] = {}
        self._loaded: CudaRun | None = None
        self._host: list[Any] | None = None  # inputs of a size that is no bucket

    def __call__(self, arrays: Sequence[Any]) -> tuple[Any, ...]:
        """Copy in, run, copy out: as `CudaRun`; results of sizes between buckets are numpy arrays."""
        size = self._size(arrays)
        if size in self._dynamic.buckets:
            return self._bucket(size)([*arrays, *self._masks(size, size)])
        host = [_on_host(array) for array in arrays]
        whole = [np.empty(info.sized(size).shape, info.dtype) for info in self._outputs]
        for bucket, at in pieces(self._dynamic, size):
            index = np.minimum(np.arange(at, at + bucket), size - 1)
            parts = [
                array if info.axis is None else np.take(array, index, info.axis)
                for array, info in zip(host, self._inputs, strict=True)
            ]
            results = self._bucket(bucket)([*parts, *self._masks(bucket, size)])
            for info, out, part in zip(self._outputs, whole, results, strict=True):
                if info.axis is None:
                    out[...] = part
                else:
                    count = min(bucket, size - at)
                    before = (slice(None),) * info.axis
                    out[(*before, slice(at, at + count))] = part[(*before, slice(0, count))]
        return tuple(whole)

    def load(self, arrays: Sequence[Any]) -> None:
        """Copy the inputs to the GPU, where the size is a bucket's; others are copied by each run."""
        size = self._size(arrays)
        self._loaded, self._host = None, None
        if size in self._dynamic.buckets:
            self._loaded = self._bucket(size)
            self._loaded.load([*arrays, *self._masks(size, size)])
        else:
            self._host = [_on_host(array) for array in arrays]

    def launch(self) -> None:
        """Run on what was loaded; waits only where the size is no bucket's."""
        if self._loaded is not None:
            self._loaded.launch()
        elif self._host is not None:
            self(self._host)

    def wait(self) -> None:
        """Until all runs have ended."""
        for run in self._runs.values():
            run.wait()

    def _size(self, arrays: Sequence[Any]) -> int:
        return size_of_run(self._inputs, self._dynamic, [shape_of(array) for array in arrays])

    def _bucket(self, bucket: int) -> CudaRun:
        if bucket not in self._runs:
            masks = [TensorInfo("", mask.shape, "float32") for mask in self._masks(bucket, bucket)]
            inputs = [*(info.sized(bucket) for info in self._inputs), *masks]
            outputs = [info.sized(bucket) for info in self._outputs]
            self._runs[bucket] = self._open(bucket_main(bucket, static=True), inputs, outputs)
        return self._runs[bucket]

    def _masks(self, bucket: int, size: int) -> list[np.ndarray]:
        return [mask.values(bucket, size) for mask in self._dynamic.masks] if bucket > 1 else []


def _on_host(array: Any) -> np.ndarray:
    if not on_gpu(array):
        return np.asarray(array)
    import tvm

    return np.asarray(tvm.runtime.from_dlpack(array).numpy())
