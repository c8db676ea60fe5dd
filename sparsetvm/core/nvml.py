"""Clocks of a GPU as NVIDIA's management library (NVML) tells them, through ctypes; it comes with the driver.

A device is found by its PCI address: NVML numbers all GPUs of a machine, CUDA those of CUDA_VISIBLE_DEVICES.
"""

from __future__ import annotations

import ctypes
import functools

from sparsetvm.core import cuda_driver
from sparsetvm.errors import EnvironmentProblem

LIBRARY = "libnvidia-ml.so.1"
_SM, _MEMORY = 1, 2  # nvmlClockType_t
_ADDRESS_BYTES = 32


def current_clocks(device: int) -> tuple[int, int] | None:
    """(multiprocessors, memory) in MHz right now of GPU `device` as CUDA counts them; None when NVML does not say."""
    try:
        nvml, handle = _device(device)
    except (OSError, AttributeError, cuda_driver.CudaError, EnvironmentProblem):
        return None
    clocks = [ctypes.c_uint(), ctypes.c_uint()]
    for kind, clock in zip((_SM, _MEMORY), clocks, strict=True):
        if nvml.nvmlDeviceGetClockInfo(handle, kind, ctypes.byref(clock)):
            return None
    return clocks[0].value, clocks[1].value


@functools.cache
def _device(device: int) -> tuple[ctypes.CDLL, ctypes.c_void_p]:
    """The library and its handle of the GPU. Raises OSError without the library or when it does not know the GPU."""
    nvml = ctypes.CDLL(LIBRARY)
    number, address, handle = ctypes.c_int(), ctypes.create_string_buffer(_ADDRESS_BYTES), ctypes.c_void_p()
    cuda_driver.call("cuDeviceGet", ctypes.byref(number), device)
    cuda_driver.call("cuDeviceGetPCIBusId", address, len(address), number)
    for code in (nvml.nvmlInit_v2(), nvml.nvmlDeviceGetHandleByPciBusId_v2(address, ctypes.byref(handle))):
        if code:
            raise OSError(f"NVML: error {code}")
    return nvml, handle
