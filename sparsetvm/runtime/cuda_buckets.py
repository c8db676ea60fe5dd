"""A model with an open dimension on a GPU: one CUDA graph for each bucket.

A run of a bucket's size stays on the GPU where its arrays are there. Any other size passes through host memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sparsetvm.core.buckets import Dynamic
from sparsetvm.core.manifest import TensorInfo, bucket_main
from sparsetvm.runtime.buckets import Buckets, Run, Slot
from sparsetvm.runtime.cuda import CudaRun, on_gpu

Open = Callable[[str, Sequence[TensorInfo], Sequence[TensorInfo]], CudaRun]


class CudaBuckets(Buckets):
    """What `CudaRun` is for a model of one size; results of sizes between buckets are numpy arrays.

    open_run: (function, inputs, outputs) -> the run of one bucket, which lies on the GPU from its first run on.
    """

    def __init__(
        self, open_run: Open, inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo], dynamic: Dynamic
    ) -> None:
        super().__init__(inputs, outputs, dynamic)
        self._open = open_run
        self._opened: dict[int, CudaRun] = {}
        self._loaded: CudaRun | None = None
        self._host: list[Any] | None = None  # inputs of a size that is no bucket

    def load(self, arrays: Sequence[Any]) -> None:
        """Copy the inputs to the GPU, where the size is a bucket's; others are copied by each run."""
        size = self.size(arrays)
        self._loaded, self._host = None, None
        if size in self.dynamic.buckets:
            self._loaded = self._bucket(size)
            self._loaded.load([*arrays, *self.masks(size, size)])
        else:
            self._host = [self.on_host(array) for array in arrays]

    def launch(self) -> None:
        """Run on what was loaded; waits only where the size is no bucket's."""
        if self._loaded is not None:
            self._loaded.launch()
        elif self._host is not None:
            self(self._host)

    def wait(self) -> None:
        """Until all runs have ended."""
        for run in self._opened.values():
            run.wait()

    def whole(self, bucket: int) -> Run:
        """The run of a bucket's own size."""
        run, masks = self._bucket(bucket), self.masks(bucket, bucket)
        return lambda arrays: run([*arrays, *masks])

    def slot(self, bucket: int, size: int) -> Slot:
        """Host memory and the run that copies it to the GPU."""
        run, masks = self._bucket(bucket), self.masks(bucket, size)
        memory = [np.empty(info.sized(bucket).shape, info.dtype) for info in self.inputs]
        return memory, lambda: run([*memory, *masks])

    def on_host(self, array: Any) -> np.ndarray:
        """A copy of what lies on the GPU."""
        if not on_gpu(array):
            return np.asarray(array)
        import tvm

        return np.asarray(tvm.runtime.from_dlpack(array).numpy())

    def _bucket(self, bucket: int) -> CudaRun:
        if bucket not in self._opened:
            self._opened[bucket] = self._open(bucket_main(bucket, static=True), *self.tensors(bucket))
        return self._opened[bucket]
