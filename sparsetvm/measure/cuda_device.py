"""A GPU as the measuring process uses it: context, guarded buffers, kernels and CUDA graphs, through the driver alone.

Only a worker process makes a context: one that a candidate has broken cannot be repaired, its process must end.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sparsetvm.core.cuda_driver import call, library
from sparsetvm.schedules.cuda.launch import TensorMap

GUARD = 256  # bytes on either side of a buffer; device memory is aligned to as many
_FILL = 0xA5
_POISON = 0xFF  # four of them are a NaN
_MAX_DYNAMIC_SHARED = 8  # CUfunction_attribute
_NON_PORTABLE_CLUSTER = 14
_PORTABLE_CLUSTER = 8  # blocks
_PROGRAMMATIC_SERIALIZATION = 6  # CUlaunchAttributeID
_BLOCKING = 0  # ordered with copies and fills, which go to the default stream
# CUtensorMap: its size, and options of cuTensorMapEncodeTiled.
_MAP_BYTES, _FLOAT16, _SWIZZLE_128B, _PROMOTION_256B = 128, 6, 3, 3
_BOX_COLUMNS = 64
_CAPTURE_THREAD = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL


class Device:
    """The primary context of a GPU, current in this thread, and a stream. Lives as long as the process."""

    def __init__(self, number: int) -> None:
        handle, context, stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        call("cuDeviceGet", ctypes.byref(handle), number)
        call("cuDevicePrimaryCtxRetain", ctypes.byref(context), handle)
        call("cuCtxSetCurrent", context)
        call("cuStreamCreate", ctypes.byref(stream), _BLOCKING)
        self.stream = stream

    def wait(self) -> None:
        """Until everything launched has ended. Raises CudaError when some of it failed."""
        call("cuStreamSynchronize", self.stream)

    def events(self) -> tuple[Event, Event]:
        return Event(self), Event(self)


class Memory:
    """Device memory, freed with the object."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.address = 0
        pointer = ctypes.c_uint64()
        call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(nbytes))
        self.address = pointer.value

    def __del__(self) -> None:
        if self.address:
            _drop("cuMemFree_v2", ctypes.c_uint64(self.address))


class DeviceBuffer:
    """An array on the device between two guard zones of 256 bytes."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype | type) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.nbytes = int(np.prod(shape, dtype=np.int64)) * self.dtype.itemsize
        # The guard behind starts right after the last byte.
        self._memory = Memory(self.nbytes + 2 * GUARD)
        self.address = self._memory.address + GUARD
        call(
            "cuMemsetD8_v2", _pointer(self._memory.address), ctypes.c_ubyte(_FILL), ctypes.c_size_t(self._memory.nbytes)
        )

    @classmethod
    def of(cls, array: np.ndarray) -> DeviceBuffer:
        """A guarded copy of a host array."""
        buffer = cls(array.shape, array.dtype)
        buffer.write(array)
        return buffer

    def write(self, array: np.ndarray) -> None:
        whole = np.ascontiguousarray(array, self.dtype)
        call(
            "cuMemcpyHtoD_v2", _pointer(self.address), ctypes.c_void_p(whole.ctypes.data), ctypes.c_size_t(self.nbytes)
        )

    def read(self) -> np.ndarray:
        """A copy on the host."""
        return _read(self.address, self.nbytes).view(self.dtype).reshape(self.shape)

    def poison(self) -> None:
        """Fill with NaN."""
        call("cuMemsetD8_v2", _pointer(self.address), ctypes.c_ubyte(_POISON), ctypes.c_size_t(self.nbytes))

    def intact(self) -> bool:
        """False when something wrote into a guard zone."""
        zones = (_read(self._memory.address, GUARD), _read(self.address + self.nbytes, GUARD))
        return all(bool((zone == _FILL).all()) for zone in zones)


class Event:
    """A point in time on a device's stream."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._handle = ctypes.c_void_p()
        call("cuEventCreate", ctypes.byref(self._handle), 0)

    def record(self) -> None:
        call("cuEventRecord", self._handle, self._device.stream)

    def seconds_since(self, earlier: Event) -> float:
        """Waits for this event. Resolution 0.5 us."""
        call("cuEventSynchronize", self._handle)
        milliseconds = ctypes.c_float()
        call("cuEventElapsedTime", ctypes.byref(milliseconds), earlier._handle, self._handle)
        return milliseconds.value * 1e-3

    def __del__(self) -> None:
        if self._handle:
            _drop("cuEventDestroy_v2", self._handle)


class _LaunchAttribute(ctypes.Structure):
    """CUlaunchAttribute: the value is a union of 64 bytes, of which only an int is used."""

    _fields_ = (
        ("id", ctypes.c_int),
        ("padding", ctypes.c_int),
        ("value", ctypes.c_int),
        ("rest", ctypes.c_char * 60),
    )


class _LaunchConfig(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        *((f"{kind}_{axis}", ctypes.c_uint) for kind in ("grid", "block") for axis in "xyz"),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_LaunchAttribute)),
        ("count", ctypes.c_uint),
    )


class Kernel:
    """A kernel of a cubin, ready to be launched with fixed arguments."""

    def __init__(
        self,
        device: Device,
        cubin: bytes,
        name: str,
        *,
        grid: tuple[int, int, int],
        block: int,
        shared: int,
        cluster: int,
        overlaps: bool,
        pointers: Sequence[int],
        scalars: Sequence[int],
        tensor_map: TensorMap | None = None,
    ) -> None:
        self._device = device
        self._module, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        call("cuModuleLoadData", ctypes.byref(self._module), cubin)
        call("cuModuleGetFunction", ctypes.byref(self._function), self._module, name.encode())
        if shared >= 48 << 10:
            call("cuFuncSetAttribute", self._function, _MAX_DYNAMIC_SHARED, shared)
        if cluster > _PORTABLE_CLUSTER:
            call("cuFuncSetAttribute", self._function, _NON_PORTABLE_CLUSTER, 1)
        self._geometry = (*grid, block, 1, 1, shared)
        # The driver reads the attribute at each launch.
        self._attribute = _LaunchAttribute(_PROGRAMMATIC_SERIALIZATION, 0, 1) if overlaps else None
        values = [*map(_pointer, pointers), *map(ctypes.c_int, scalars)]
        self._values = values  # the driver reads them at each launch
        addresses = [ctypes.addressof(value) for value in values]
        if tensor_map is not None:
            self._map = _encoded(tensor_map, pointers[0])
            addresses.append(_aligned(self._map))
        self._arguments = (ctypes.c_void_p * len(addresses))(*addresses)

    def launch(self) -> None:
        """Put one run on the device's stream."""
        if self._attribute is None:
            call("cuLaunchKernel", self._function, *self._geometry, self._device.stream, self._arguments, None)
            return
        config = _LaunchConfig(*self._geometry, self._device.stream, ctypes.pointer(self._attribute), 1)
        call("cuLaunchKernelEx", ctypes.byref(config), self._function, self._arguments, None)

    def __del__(self) -> None:
        if self._module:
            _drop("cuModuleUnload", self._module)


class Graph:
    """What `record` puts on the device's stream, as one CUDA graph."""

    def __init__(self, device: Device, record: Callable[[], Any]) -> None:
        self._device = device
        self._graph, self._executable = ctypes.c_void_p(), ctypes.c_void_p()
        call("cuStreamBeginCapture_v2", device.stream, _CAPTURE_THREAD)
        try:
            record()
        finally:
            call("cuStreamEndCapture", device.stream, ctypes.byref(self._graph))
        call("cuGraphInstantiateWithFlags", ctypes.byref(self._executable), self._graph, ctypes.c_ulonglong(0))

    def launch(self) -> None:
        call("cuGraphLaunch", self._executable, self._device.stream)

    def __del__(self) -> None:
        if self._executable:
            _drop("cuGraphExecDestroy", self._executable)
        if self._graph:
            _drop("cuGraphDestroy", self._graph)


def _encoded(tensor_map: TensorMap, address: int) -> ctypes.Array[ctypes.c_char]:
    """Memory with the driver's description of the matrix at `address`, see `_aligned`."""
    memory = (ctypes.c_char * (2 * _MAP_BYTES))()
    sizes = (ctypes.c_uint64 * 2)(tensor_map.columns, tensor_map.rows)
    pitch = (ctypes.c_uint64 * 1)(2 * tensor_map.pitch)
    box, steps = (ctypes.c_uint32 * 2)(_BOX_COLUMNS, tensor_map.box_rows), (ctypes.c_uint32 * 2)(1, 1)
    call(
        "cuTensorMapEncodeTiled", ctypes.c_void_p(_aligned(memory)), _FLOAT16, 2, ctypes.c_void_p(address), sizes,
        pitch, box, steps, 0, _SWIZZLE_128B, _PROMOTION_256B, 0,
    )  # fmt: skip
    return memory


def _aligned(memory: ctypes.Array[ctypes.c_char]) -> int:
    """The first multiple of 64 bytes in it."""
    return -(-ctypes.addressof(memory) // 64) * 64


def _pointer(address: int) -> ctypes.c_uint64:
    return ctypes.c_uint64(address)


def _read(address: int, nbytes: int) -> np.ndarray:
    array = np.empty(nbytes, np.uint8)
    call("cuMemcpyDtoH_v2", ctypes.c_void_p(array.ctypes.data), _pointer(address), ctypes.c_size_t(nbytes))
    return array


def _drop(function: str, handle: Any) -> None:
    """Free something. Its result says nothing new: a broken context has already been reported, and all ends with it."""
    getattr(library(), function)(handle)
