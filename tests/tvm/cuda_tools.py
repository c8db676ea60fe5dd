"""What tests of code for a GPU need, and why they are skipped without it."""

from __future__ import annotations

import shutil

import pytest

from sparsetvm.errors import EnvironmentProblem
from sparsetvm.measure.nvcc import find_compiler

EM_CUDA = 190


def cuda_compiler_is_missing() -> bool:
    try:
        find_compiler()
    except EnvironmentProblem:
        return True
    return False


needs_cuda_compiler = pytest.mark.skipif(cuda_compiler_is_missing(), reason="needs nvcc or the package cuda-bindings")
needs_c_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")


def architectures(library: bytes) -> set[int]:
    """Architectures (90 for sm_90) of all CUDA machine code in a file: ELF images of NVIDIA's machine."""
    found = set()
    at = library.find(b"\x7fELF", 1)
    while at >= 0:
        header = library[at : at + 64]
        if int.from_bytes(header[18:20], "little") == EM_CUDA:
            # e_flags hold it in the second byte, in older toolkits in the first.
            flags = int.from_bytes(header[48:52], "little")
            found.add((flags >> 8) & 0xFF or flags & 0xFF)
        at = library.find(b"\x7fELF", at + 1)
    return found
