"""A compiled model on a GPU: tensors that stay where they are, and one CUDA graph for the whole network.

The function `main_static` of the library writes its outputs where they are wanted. Its first call captures the graph
(TVM's virtual machine does that), each later one launches it. No CUDA compiler is needed.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import numpy as np

from sparsetvm.core.manifest import STATIC_MAIN, TensorInfo
from sparsetvm.errors import EnvironmentProblem, UsageError

_DEVICE_TYPE = 2  # kDLCUDA

# Held by whatever a model does on a GPU. TVM captures graphs in CUDA's global mode: until a capture ends, no other
# thread of the process may allocate, free, copy or load anything there, for whichever model, or the capture fails.
gpu_lock = threading.RLock()


_P = ParamSpec("_P")
_R = TypeVar("_R")


def _names_the_gpu(call: Callable[_P, _R]) -> Callable[_P, _R]:
    """A method that raises EnvironmentProblem for what CUDA reports: a GPU that is gone, full or broken by a kernel."""

    @functools.wraps(call)
    def checked(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return call(*args, **kwargs)
        except RuntimeError as error:  # what TVM raises for it
            lines = [line.strip() for line in str(error).splitlines() if "CUDA" in line]
            if not lines:
                raise
            hint = "look at nvidia-smi, then start this process again: CUDA lets it use the GPU no more"
            raise EnvironmentProblem(f"the GPU fails while the model runs: {lines[-1]}", hint=hint) from error

    return checked


class CudaRun:
    """Runs one loaded library on a GPU.

    machine: TVM's virtual machine of the library. device: number of the GPU. Call everything under `gpu_lock`.
    """

    @_names_the_gpu
    def __init__(
        self,
        machine: Any,
        device: int,
        inputs: Sequence[TensorInfo],
        outputs: Sequence[TensorInfo],
        function: str = STATIC_MAIN,
    ) -> None:
        import tvm

        self._number = device
        self._device = tvm.cuda(device)
        self._function = machine[function]
        self._inputs = [tvm.runtime.empty(info.shape, info.dtype, self._device) for info in inputs]
        self._outputs = [tvm.runtime.empty(info.shape, info.dtype, self._device) for info in outputs]
        self._infos = list(inputs)

    @_names_the_gpu
    def __call__(self, arrays: Sequence[Any]) -> tuple[Any, ...]:
        """Copy in, run, copy out: numpy arrays, or tensors on the GPU when all of `arrays` are there."""
        self.load(arrays)
        self.launch()
        if arrays and all(map(on_gpu, arrays)):
            return tuple(self._fresh(output) for output in self._outputs)
        return tuple(np.array(output.numpy()) for output in self._outputs)

    @_names_the_gpu
    def load(self, arrays: Sequence[Any]) -> None:
        """Copy the inputs to the GPU."""
        self._use_device()
        for tensor, array, info in zip(self._inputs, arrays, self._infos, strict=True):
            if on_gpu(array):
                _checked(array, info).copyto(tensor)
            else:
                tensor.copyfrom(np.ascontiguousarray(array))

    @_names_the_gpu
    def launch(self) -> None:
        """Start a run on the inputs that are there, without waiting for it."""
        self._use_device()
        self._function(*self._inputs, *self._outputs)

    @_names_the_gpu
    def wait(self) -> None:
        """Until all runs have ended."""
        self._device.sync()

    def _fresh(self, output: Any) -> Any:
        import tvm

        copy = tvm.runtime.empty(output.shape, output.dtype, self._device)
        output.copyto(copy)
        return copy

    def _use_device(self) -> None:
        """Graphs are captured and launched on the calling thread's current GPU."""
        if self._number:
            code = ctypes.CDLL("libcudart.so.13").cudaSetDevice(self._number)
            if code:
                raise EnvironmentProblem(f"GPU {self._number} cannot be used (CUDA error {code})")


def on_gpu(array: Any) -> bool:
    """True for tensors of any library that lie on an NVIDIA GPU."""
    device = getattr(array, "__dlpack_device__", None)
    return device is not None and int(device()[0]) == _DEVICE_TYPE


def _checked(array: Any, info: TensorInfo) -> Any:
    """The tensor as TVM sees it, without a copy."""
    import tvm

    tensor = tvm.runtime.from_dlpack(array)
    shape = tuple(int(size) for size in tensor.shape)
    if shape != info.shape or str(tensor.dtype) != info.dtype:
        raise UsageError(
            f"input '{info.name}': expected {info.dtype} of shape {info.shape}, given {tensor.dtype} of shape {shape}",
            hint="shapes are fixed when the model is compiled; convert other types first",
        )
    return tensor
