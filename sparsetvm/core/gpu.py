"""GPUs: what is known of an architecture, and what the driver says of a device, without creating a context."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import msgspec

from sparsetvm.core import cuda_driver
from sparsetvm.errors import TargetError, did_you_mean

# CUdevice_attribute of cuda.h
_CLOCK, _SMS, _MEMORY_CLOCK, _L2, _MAJOR, _MINOR, _SHARED_OPTIN = 13, 16, 36, 38, 75, 76, 97


class GpuModel(msgspec.Struct, frozen=True):
    """What schedules need to know. sms: multiprocessors; shared: bytes one block may have; l2: bytes of the GPU."""

    sms: int
    shared: int
    l2: int


# Cross-compilation assumes the data centre model of an architecture (sm_90: H100 and H200).
KNOWN_GPUS: dict[str, GpuModel] = {
    "sm_80": GpuModel(108, 163 << 10, 40 << 20),
    "sm_86": GpuModel(84, 99 << 10, 6 << 20),
    "sm_89": GpuModel(142, 99 << 10, 96 << 20),
    "sm_90": GpuModel(132, 227 << 10, 50 << 20),
    "sm_100": GpuModel(148, 227 << 10, 126 << 20),
    "sm_120": GpuModel(188, 99 << 10, 128 << 20),
}


class Gpu(msgspec.Struct, frozen=True):
    """A device of this machine. clocks: highest clocks of multiprocessors and memory in MHz; driver: its version."""

    name: str
    arch: str
    model: GpuModel
    clocks: tuple[int, int]
    driver: str


def known_gpu(arch: str, text: str) -> GpuModel:
    """The model of an architecture. Raises TargetError for an unknown one; `text` is what the user wrote."""
    if arch not in KNOWN_GPUS:
        raise TargetError(
            f"unknown GPU architecture '{arch}' in target '{text}'{did_you_mean(arch, KNOWN_GPUS)}",
            hint=f"write one of {', '.join(f'cuda,{name}' for name in KNOWN_GPUS)}",
        )
    return KNOWN_GPUS[arch]


def count_gpus() -> int:
    """GPUs that this process may use. Raises EnvironmentProblem without a driver."""
    found = ctypes.c_int()
    cuda_driver.library()
    cuda_driver.call("cuDeviceGetCount", ctypes.byref(found))
    return found.value


@functools.cache
def query_gpu(device: int) -> Gpu:
    """GPU number `device` as CUDA counts them (CUDA_VISIBLE_DEVICES applies).

    Raises EnvironmentProblem without a driver, TargetError when there are fewer GPUs or this one is too old.
    """
    count = count_gpus()
    if device >= count:
        raise TargetError(
            f"there is no GPU {device}: CUDA sees {count}",
            hint="check CUDA_VISIBLE_DEVICES, or cross-compile with --target cuda,sm_90",
        )
    handle = ctypes.c_int()
    cuda_driver.call("cuDeviceGet", ctypes.byref(handle), device)
    name = ctypes.create_string_buffer(256)
    cuda_driver.call("cuDeviceGetName", name, len(name), handle)

    def attribute(number: int) -> int:
        value = ctypes.c_int()
        cuda_driver.call("cuDeviceGetAttribute", ctypes.byref(value), number, handle)
        return value.value

    arch = f"sm_{attribute(_MAJOR)}{attribute(_MINOR)}"
    if arch not in KNOWN_GPUS and attribute(_MAJOR) < 8:
        raise TargetError(f"GPU {device} is {arch}, older than sm_80", hint="use --target cpu")
    return Gpu(
        name.value.decode(errors="replace"),
        arch,
        GpuModel(attribute(_SMS), attribute(_SHARED_OPTIN), attribute(_L2)),
        (attribute(_CLOCK) // 1000, attribute(_MEMORY_CLOCK) // 1000),
        _driver_version(),
    )


def _driver_version() -> str:
    """Version of the kernel module, "unknown" where it does not say."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="ascii", errors="replace")
    except OSError:
        return "unknown"
    words = text.split("\n")[0].split()
    return next((word for word in words if word[:1].isdigit() and "." in word), "unknown")
