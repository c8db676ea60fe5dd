"""A library's machine code where CUDA's tools look for it, so that `cuobjdump -sass model.so` shows the kernels.

TVM loads cubins from data of its own, which those tools cannot see. The section `.nv_fatbin`, where nvcc puts its code,
gets a copy of them; it is never loaded into memory. Container and images have the headers that NVIDIA's `fatbinary`
writes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tvm.support.cc import create_shared

from sparsetvm.errors import SparseTvmError
from sparsetvm.measure.nvcc import is_cubin

_MAGIC, _VERSION = 0xBA55ED50, 1
_HEADER = struct.Struct("<IHHQ")  # magic, version, size of this header, bytes behind it
# kind (2: ELF), version, size of this header, bytes of the image, what is not there (0, 8), minor version of the image,
# architecture, its name's place, flags (64 bits, Linux), reserved
_IMAGE = struct.Struct("<HHIQQHHIQQQ8x")
_ELF_IMAGE, _IMAGE_VERSION, _IMAGE_FLAGS = 2, 0x101, 0x11
_ALIGN = 8
_SOURCE_TEXT = b'extern "C" __global__'  # in all CUDA C++ that TVM writes, in no cubin
_ELF, _ELF_HEADER = b"\x7fELF", 64


def fatbin(cubins: Iterable[bytes], arch: str) -> bytes:
    """The container of some cubins; arch: "sm_90"."""
    number = int("".join(filter(str.isdigit, arch)))
    images = b""
    for cubin in cubins:
        image = cubin + bytes(-len(cubin) % _ALIGN)
        header = (_ELF_IMAGE, _IMAGE_VERSION, _IMAGE.size, len(image), 0, _ALIGN, 1, number, 0, _IMAGE_FLAGS, 0)
        images += _IMAGE.pack(*header) + image
    return _HEADER.pack(_MAGIC, _VERSION, _HEADER.size, len(images)) + images


def cubins_in(data: bytes) -> Iterator[bytes]:
    """The cubins within some bytes: from each ELF header of a GPU's machine code to the end of its last table."""
    at = data.find(_ELF)
    while at >= 0:
        if is_cubin(data[at : at + _ELF_HEADER]):
            ends = [_ELF_HEADER]
            for offset, sizes in ((32, 54), (40, 58)):  # program headers, section headers
                (table,), (size, count) = (
                    struct.unpack_from("<Q", data, at + offset),
                    struct.unpack_from("<HH", data, at + sizes),
                )
                ends.append(table + size * count)
            yield data[at : at + max(ends)]
        at = data.find(_ELF, at + 1)


def code_section(objects: Iterable[Path], arch: str, folder: Path) -> Path:
    """Write assembly for the linker: the section with the cubins in object files.

    The folder must stay until the library has been linked.
    """
    code, source = folder / "code.fatbin", folder / "code.s"
    code.write_bytes(fatbin((cubin for path in objects for cubin in cubins_in(path.read_bytes())), arch))
    quoted = str(code.resolve()).replace("\\", "\\\\").replace('"', '\\"')
    source.write_text(f'.section .nv_fatbin,""\n.balign {_ALIGN}\n.incbin "{quoted}"\n.section .note.GNU-stack,""\n')
    return source


def linker(cxx: str, arch: str, folder: Path) -> Callable[..., None]:
    """What export_library links with, so that the section is in the library."""

    def link(output: str, objects: Sequence[str], **more: Any) -> None:
        section = code_section([Path(name) for name in objects], arch, folder)
        create_shared(output, [*objects, str(section)], cc=cxx, **more)

    return link


def check_machine_code(library: bytes) -> None:
    """Raise SparseTvmError when a library holds source text of a kernel: TVM embeds it without a word."""
    cubins = sum(1 for _ in cubins_in(library))
    if not cubins or _SOURCE_TEXT in library:
        raise SparseTvmError(
            f"the library holds {cubins} CUDA modules of machine code and {library.count(_SOURCE_TEXT)} of source text",
            hint="report it with the output of `sparsetvm doctor`",
        )
