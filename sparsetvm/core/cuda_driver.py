"""NVIDIA's driver through ctypes: the few calls that query a GPU, time kernels on it and find out what went wrong.

ctypes, not cuda-bindings: the driver's C interface is stable, it is there wherever a GPU is, and a deployed model needs
no further package. Names ending in _v2 are what the C headers call without it.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

from sparsetvm.errors import EnvironmentProblem

LIBRARY = "libcuda.so.1"
_NO_DRIVER = "install NVIDIA's driver, or cross-compile with --target cuda,sm_90"

_GONE = frozenset((46, 100, 101))  # device unavailable, no device, invalid device
# After these the context is lost: every later call fails, whatever it does.
_STICKY = frozenset((214, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721))


class CudaError(Exception):
    """A driver call failed. code, name: as in cuda.h; sticky: the process must end to use the GPU again.

    gone: there is no such GPU any more.
    """

    def __init__(self, call: str, code: int, name: str) -> None:
        super().__init__(f"{call}: {name} ({code})")
        self.code = code
        self.sticky = code in _STICKY
        self.gone = code in _GONE


@functools.cache
def library() -> ctypes.CDLL:
    """The loaded driver after cuInit, which creates no context. Raises EnvironmentProblem without a driver or GPU.

    A process must not fork after this and use the GPU in the child.
    """
    try:
        driver = ctypes.CDLL(LIBRARY)
        start = driver.cuInit
    except (OSError, AttributeError) as error:
        raise EnvironmentProblem(f"no NVIDIA driver here ({LIBRARY} is missing)", hint=_NO_DRIVER) from error
    code = start(0)
    if code:
        raise EnvironmentProblem(f"NVIDIA's driver does not start: {_name(driver, code)} ({code})", hint=_NO_DRIVER)
    return driver


def call(function: str, *arguments: Any) -> None:
    """Call a driver function. Raises CudaError when it fails."""
    driver = library()
    code = getattr(driver, function)(*arguments)
    if code:
        raise CudaError(function, code, _name(driver, code))


def _name(driver: ctypes.CDLL, code: int) -> str:
    text = ctypes.c_char_p()
    if driver.cuGetErrorName(code, ctypes.byref(text)) or text.value is None:
        return "unknown error"
    return text.value.decode()
