"""`run_launch`: compile a launch's source with g++ and run it on numpy arrays."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import mmap
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from sparsetvm.schedules.cuda import launch as launch_module
from sparsetvm.schedules.cuda.launch import Launch

HERE = Path(__file__).parent
PAGE = mmap.PAGESIZE
ALIGN = 16  # bytes: what the widest access needs
FLAGS = (
    *(
        "-std=c++17",
        "-O1",
        "-g1",
        "-fPIC",
        "-shared",
        "-DSP_EMULATE",
        "-ffp-contract=off",
        "-Wall",
        "-Wextra",
        "-Werror",
    ),
    *(
        "-Wno-unknown-pragmas",
        "-Wno-unused-parameter",
        "-Wno-attributes",
        "-Wno-strict-aliasing",
        "-fno-strict-aliasing",
    ),
    *("-fsanitize=alignment,bounds", "-fsanitize-undefined-trap-on-error"),
)


class EmulatorError(AssertionError):
    """The launch breaks a rule that a GPU would punish, or not even notice."""


def run_launch(launch: Launch, arrays: list[np.ndarray]) -> None:
    """Run `launch` on `arrays` (in argument order, scalars excluded); results are written in place.

    Runs twice, with the threads in opposite order, and raises EmulatorError where the results differ.
    """
    for array in arrays:
        if not array.flags.c_contiguous:
            raise EmulatorError("arrays must be contiguous")
    if launch.grid[0] * launch.grid[1] * launch.grid[2] == 0 or launch.grid[0] % launch.cluster:
        raise EmulatorError(f"grid {launch.grid} holds no whole clusters of {launch.cluster} blocks")
    source = _source(launch)
    run = _compiled(source, launch.entry, launch.defines, _digest(source))
    outcomes = [_run(run, launch, arrays, backward) for backward in (False, True)]
    for number, (array, forward, backward) in enumerate(zip(arrays, *outcomes, strict=True)):
        differ = np.flatnonzero(forward.view(np.uint8) != backward.view(np.uint8))
        if differ.size:
            at = int(differ[0]) // array.itemsize
            raise EmulatorError(f"argument {number}: element {at} depends on the order in which threads run")
        array.reshape(-1)[:] = forward


def _run(
    function: ctypes._NamedFuncPointer, launch: Launch, arrays: list[np.ndarray], backward: bool
) -> list[np.ndarray]:
    guarded = [_Guarded(array.nbytes) for array in arrays]
    shared_bytes = -(-launch.shared // ALIGN) * ALIGN
    shared = [_Guarded(shared_bytes) for _ in range(launch.cluster)]
    for place, array in zip(guarded, arrays, strict=True):
        place.bytes[:] = array.reshape(-1).view(np.uint8)
    pointers = [ctypes.c_void_p(place.address) for place in guarded]
    values = [*pointers, *(ctypes.c_int32(scalar) for scalar in launch.scalars)]
    slots = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
    message = function(
        (ctypes.c_uint * 3)(*launch.grid),
        launch.block,
        launch.cluster,
        (ctypes.c_void_p * len(shared))(*(place.address for place in shared)),
        ctypes.c_size_t(shared_bytes),
        slots,
        len(values),
        (ctypes.c_void_p * len(guarded))(*(place.address for place in guarded)),
        (ctypes.c_size_t * len(guarded))(*(array.nbytes for array in arrays)),
        len(guarded),
        int(backward),
    ).decode()
    if message:
        raise EmulatorError(f"{launch.source} {launch.entry}: {message}")
    for number, place in enumerate(guarded):
        if not place.intact():
            raise EmulatorError(f"argument {number}: written outside its bounds")
    return [place.bytes.copy().view(array.dtype) for place, array in zip(guarded, arrays, strict=True)]


class _Guarded:
    """Memory that ends at a page that cannot be touched and begins behind one; what is left of its pages is 0xff."""

    def __init__(self, nbytes: int) -> None:
        padded = -(-nbytes // ALIGN) * ALIGN
        pages = max(-(-padded // PAGE), 1)
        self._map = mmap.mmap(-1, (pages + 2) * PAGE)
        self._all = np.frombuffer(self._map, np.uint8)
        base = self._all.ctypes.data
        self._body = self._all[PAGE : (pages + 1) * PAGE]
        self._body[:] = 0xFF
        self._start = pages * PAGE - padded
        self._stop = self._start + nbytes
        self.bytes = self._body[self._start : self._stop]
        self.address = base + PAGE + self._start
        self._fences = (base, base + (pages + 1) * PAGE)
        for fence in self._fences:
            _protect(fence, 0)

    def intact(self) -> bool:
        return bool((self._body[: self._start] == 0xFF).all() and (self._body[self._stop :] == 0xFF).all())

    def __del__(self) -> None:
        for fence in self._fences:
            _protect(fence, mmap.PROT_READ | mmap.PROT_WRITE)


def _protect(address: int, how: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(PAGE), how):
        raise OSError(ctypes.get_errno(), "mprotect")


def _source(launch: Launch) -> Path:
    """The launch's file; generated text becomes one."""
    if launch.text is None:
        return launch.path
    path = _cache() / f"{hashlib.sha256(launch.text.encode()).hexdigest()[:24]}.cu"
    if not path.exists():
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_text(launch.text)
        partial.replace(path)
    return path


def _cache() -> Path:
    folder = Path(tempfile.gettempdir()) / f"sparsetvm-emulator-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _digest(source: Path) -> str:
    files = sorted((source, *Path(launch_module.__file__).parent.glob("*.cuh"), *HERE.glob("*.h"), *HERE.glob("*.cpp")))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


@functools.cache
def _compiled(
    path: Path, entry: str, defines: tuple[tuple[str, int | float], ...], digest: str
) -> ctypes._NamedFuncPointer:
    cache = _cache()
    key = hashlib.sha256(repr((str(path), entry, defines, digest, FLAGS)).encode()).hexdigest()[:24]
    library = cache / f"{key}.so"
    if not library.exists():
        macros = [f"-D{name}={value}" for name, value in defines]
        partial = cache / f"{key}.{os.getpid()}.so"
        command = [
            *("g++", *FLAGS, *macros, f'-DSP_SOURCE="{path}"', f"-DSP_ENTRY={entry}", f"-I{HERE}"),
            f"-I{Path(launch_module.__file__).parent}",
            *(str(HERE / "harness.cpp"), "-o", str(partial)),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise EmulatorError(f"{path.name} does not compile with g++:\n{done.stderr[-4000:]}")
        partial.replace(library)
    function = ctypes.CDLL(str(library)).sp_run
    function.restype = ctypes.c_char_p
    return function
