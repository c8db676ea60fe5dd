"""What a process that parses a hostile file may use: memory and CPU time by the file's size, no file to write."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import threading
from pathlib import Path

# A model is held as protobuf, as arrays and in folded constants, and packed integers grow eightfold when unpacked.
_MEMORY_PER_BYTE = 12
_MEMORY = 1 << 30
_MEMORY_PER_CORE = 64 << 20  # a thread of the linear algebra library: its stack and buffers
_CPU_SECONDS = 120
_BYTES_PER_CPU_SECOND = 4 << 20
_OPEN_FILES = 64
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38

_limited = threading.Event()  # set in a process that has its limits


def limit_this_process(size: int) -> None:
    """Set the limits for a file of `size` bytes, for good, and die with the process that started this one."""
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    page = os.sysconf("SC_PAGE_SIZE")
    used = int(Path("/proc/self/statm").read_text().split()[0]) * page
    most = used + os.sysconf("SC_PHYS_PAGES") * page
    cores = (os.cpu_count() or 1) * _MEMORY_PER_CORE
    _set(resource.RLIMIT_AS, min(most, used + _MEMORY + cores + size * _MEMORY_PER_BYTE), most)
    _set(resource.RLIMIT_CPU, cpu_seconds(size), cpu_seconds(size) + 5)
    _set(resource.RLIMIT_NOFILE, _OPEN_FILES, _OPEN_FILES)
    for nothing in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        _set(nothing, 0, 0)
    _limited.set()


def allow_memory(size: int) -> None:
    """Raise the memory limit, if this process set one, for `size` more bytes that belong to the model."""
    if _limited.is_set():
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (min(hard, soft + size * _MEMORY_PER_BYTE), hard))


def cpu_seconds(size: int) -> int:
    """CPU time allowed for a file of `size` bytes."""
    return _CPU_SECONDS + size // _BYTES_PER_CPU_SECOND


def _set(which: int, soft: int, hard: int) -> None:
    """Lower a limit; one that is lower already stays."""
    _, ours = resource.getrlimit(which)
    if ours != resource.RLIM_INFINITY:
        soft, hard = min(soft, ours), min(hard, ours)
    resource.setrlimit(which, (soft, hard))
