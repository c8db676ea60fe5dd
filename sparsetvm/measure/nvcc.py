"""CUDA C++ -> machine code of one GPU architecture (a cubin), in parallel and cached on disk.

nvcc compiles; where it is missing but the package cuda-bindings is there, NVRTC does, which is the same compiler as a
library. Products and sums are contracted (--fmad, the default), nothing else is relaxed: no fast math.
The cache lies in the user's cache folder and is keyed by everything that shapes the code.
"""

from __future__ import annotations

import concurrent.futures
import functools
import hashlib
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from sparsetvm.core.files import write_whole
from sparsetvm.core.folders import cache_folder
from sparsetvm.core.target import Target, version_of
from sparsetvm.errors import EnvironmentProblem, SparseTvmError
from sparsetvm.schedules.cuda.launch import Launch

_HINT = "install NVIDIA's CUDA toolkit (nvcc on PATH or in CUDA_HOME), or pip install 'sparsetvm[cuda]'"
_ELF = b"\x7fELF"
_CUDA_MACHINE = 190  # e_machine of cubins
_STANDARD = "-std=c++17"
_SECONDS = 300.0
# NVRTC comes without the headers of a C++ library.
_CSTDINT = b"""#pragma once
typedef signed char int8_t; typedef unsigned char uint8_t; typedef short int16_t; typedef unsigned short uint16_t;
typedef int int32_t; typedef unsigned uint32_t; typedef long long int64_t; typedef unsigned long long uint64_t;
typedef unsigned long long uintptr_t;
"""
_ASKED_FOR = 48 << 10  # from here on the driver must be asked for dynamic shared memory


class CompileError(SparseTvmError):
    """The compiler rejects a source: a bug in a schedule."""


class Source(msgspec.Struct, frozen=True):
    """One translation unit. text: CUDA C++; macros: -D options without the -D; folders: where its includes lie.

    native: for the very architecture, with its own instructions.
    """

    text: str
    macros: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    native: bool = False


class Compiler(msgspec.Struct, frozen=True):
    """path: of nvcc, "" for NVRTC. version: enters the cache key."""

    path: str
    version: str


def find_compiler() -> Compiler:
    """nvcc of CUDA_HOME, CUDA_PATH, PATH or the usual folders; else NVRTC. Raises EnvironmentProblem without either."""
    found = _find_nvcc(tuple(os.environ.get(name, "") for name in ("CUDA_HOME", "CUDA_PATH", "PATH")))
    if found is not None:
        return found
    reason = "neither nvcc nor the package cuda-bindings"
    if version_of("cuda-bindings") != "missing":
        try:
            return Compiler("", _nvrtc_version())
        except Exception as error:
            # cuda-bindings looks the library up at the first call and has error types of its own.
            reason = f"no nvcc, and NVRTC does not load ({str(error).splitlines()[0]})"
    raise EnvironmentProblem(f"no CUDA compiler found: {reason}", hint=_HINT)


@functools.cache
def _find_nvcc(environment: tuple[str, ...]) -> Compiler | None:
    home, path, search = environment
    folders = [Path(folder, "bin") for folder in (home, path) if folder]
    beside = [str(folder / "nvcc") for folder in folders]
    for name in [*beside, shutil.which("nvcc", path=search or None), "/usr/local/cuda/bin/nvcc"]:
        if name and os.access(name, os.X_OK):
            done = subprocess.run([name, "--version"], capture_output=True, text=True, timeout=60, check=False)
            if done.returncode == 0:
                return Compiler(name, done.stdout.strip().splitlines()[-1])
    return None


def _nvrtc_version() -> str:
    from cuda.bindings import nvrtc

    _, major, minor = nvrtc.nvrtcVersion()
    return f"nvrtc {major}.{minor}"


def kernel_symbol(launch: Launch) -> str:
    """Name of the compiled kernel: equal for equal code, so that tuning and all models share what the cache holds.

    TVM asks the driver for more than 48 KB of shared memory at the first launch of a name, with what that launch needs:
    launches that need other amounts must go by other names.
    """
    large = launch.shared if launch.shared >= _ASKED_FOR else 0
    code = repr((launch.source, launch.entry, launch.defines, launch.cluster, launch.overlaps, large, launch.text))
    return f"sparsetvm_{launch.entry}_{hashlib.sha256(code.encode()).hexdigest()[:12]}"


def launch_source(launch: Launch) -> Source:
    """The translation unit of a launch, its entry renamed: kernels of one module need names of their own."""
    macros = [f"{name}={macro_value(value)}" for name, value in launch.defines]
    macros.append(f"SP_CLUSTER={launch.cluster}")
    renamed = f"{launch.entry}={kernel_symbol(launch)}"
    text = launch.path.read_text(encoding="utf-8") if launch.text is None else launch.text
    return Source(text, (*dict.fromkeys(macros), renamed), tuple(map(str, launch.folders)), launch.native)


def macro_value(value: int | float) -> str:
    """A number as C++ writes it; floats are float32."""
    if isinstance(value, int):
        return str(int(value))
    if not math.isfinite(value):
        return "NAN" if math.isnan(value) else "INFINITY" if value > 0 else "(-INFINITY)"
    return f"({value!r}f)"


def compile_sources(sources: Sequence[Source], target: Target, jobs: int = 0) -> list[bytes]:
    """Cubins of all sources for the target's architecture, `jobs` compilers at a time (0: one per core).

    Raises EnvironmentProblem without a compiler, CompileError with the compiler's words.
    """
    compiler = find_compiler()
    keys = [_key(source, target.isa, compiler) for source in sources]
    cubins = {key: found for key in set(keys) if (found := _read_cached(key)) is not None}
    missing = {key: source for key, source in zip(keys, sources, strict=True) if key not in cubins}
    with concurrent.futures.ThreadPoolExecutor(jobs or len(os.sched_getaffinity(0))) as pool:
        compiled = pool.map(lambda source: _compile(source, target.isa, compiler), missing.values())
        for key, cubin in zip(missing, compiled, strict=True):
            cubins[key] = cubin
            _write_cached(key, cubin)
    return [cubins[key] for key in keys]


def is_cubin(code: bytes) -> bool:
    """True for machine code, False for the PTX or source text that TVM may hand out instead."""
    return code[:4] == _ELF and int.from_bytes(code[18:20], "little") == _CUDA_MACHINE


def cubin_folder() -> Path | None:
    """Where compiled kernels are kept, None when there is no place for them."""
    folder = cache_folder()
    return None if folder is None else folder / "cubin"


def _key(source: Source, arch: str, compiler: Compiler) -> str:
    digest = hashlib.sha256()
    headers = [header for folder in source.folders for header in sorted(Path(folder).glob("*.cuh"))]
    parts = [
        source.text,
        *source.macros,
        _architecture(source, arch),
        compiler.version,
        *(h.read_text(encoding="utf-8") for h in headers),
    ]
    for part in parts:
        digest.update(part.encode())
        digest.update(b"\0")
    return digest.hexdigest()


def _read_cached(key: str) -> bytes | None:
    folder = cubin_folder()
    try:
        cubin = (folder / f"{key}.cubin").read_bytes() if folder is not None else b""
    except OSError:
        return None
    return cubin if is_cubin(cubin) else None


def _write_cached(key: str, cubin: bytes) -> None:
    """Appears whole or not at all. A cache that cannot be written costs time only."""
    folder = cubin_folder()
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / f"{key}.cubin", lambda file: file.write(cubin))
    except OSError:
        return


def _architecture(source: Source, arch: str) -> str:
    return f"{arch}a" if source.native else arch


def _compile(source: Source, arch: str, compiler: Compiler) -> bytes:
    arch = _architecture(source, arch)
    cubin = _with_nvcc(source, arch, compiler.path) if compiler.path else _with_nvrtc(source, arch)
    if not is_cubin(cubin):
        raise EnvironmentProblem("the CUDA compiler wrote no machine code", hint=_HINT)
    return cubin


def _with_nvcc(source: Source, arch: str, nvcc: str) -> bytes:
    with tempfile.TemporaryDirectory(prefix="sparsetvm-nvcc-") as folder:
        path, out = Path(folder, "kernel.cu"), Path(folder, "kernel.cubin")
        path.write_text(source.text, encoding="utf-8")
        include = [f"-I{folder}" for folder in source.folders]
        macros = [f"-D{macro}" for macro in source.macros]
        command = [
            nvcc,
            "-cubin",
            f"-gencode=arch=compute_{arch[3:]},code={arch}",
            _STANDARD,
            "-O3",
            *include,
            *macros,
            "-o",
            str(out),
            str(path),
        ]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise CompileError(f"nvcc took longer than {_SECONDS:g} s") from error
        if done.returncode:
            raise _problem(done.stderr or done.stdout, arch)
        return out.read_bytes()


def _with_nvrtc(source: Source, arch: str) -> bytes:
    from cuda.bindings import nvrtc

    success = nvrtc.nvrtcResult.NVRTC_SUCCESS
    # Lambdas have no execution space of their own: nvcc gives them that of their function, NVRTC refuses them.
    options = [f"--gpu-architecture={arch}", _STANDARD, "--device-as-default-execution-space"]
    options += [f"-D{macro}" for macro in source.macros]
    options += [f"--include-path={folder}" for folder in source.folders]
    _, program = nvrtc.nvrtcCreateProgram(source.text.encode(), b"kernel.cu", 1, [_CSTDINT], [b"cstdint"])
    encoded = [option.encode() for option in options]
    (result,) = nvrtc.nvrtcCompileProgram(program, len(encoded), encoded)
    if result != success:
        _, size = nvrtc.nvrtcGetProgramLogSize(program)
        log = bytearray(size)
        nvrtc.nvrtcGetProgramLog(program, log)
        raise _problem(log.decode(errors="replace"), arch)
    _, size = nvrtc.nvrtcGetCUBINSize(program)
    cubin = bytearray(size)
    nvrtc.nvrtcGetCUBIN(program, cubin)
    nvrtc.nvrtcDestroyProgram(program)
    return bytes(cubin)


def _problem(words: str, arch: str) -> SparseTvmError:
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    text = next((line for line in lines if "error" in line or "fatal" in line), lines[0] if lines else "no message")
    if "nsupported gpu architecture" in words or "not defined for option 'gpu-architecture'" in words:
        return EnvironmentProblem(f"this CUDA compiler does not know {arch}: {text}", hint="install CUDA 12.8 or newer")
    if "ost compiler" in words or "cannot find" in words.lower():
        return EnvironmentProblem(f"nvcc does not work: {text}", hint="install a C++ compiler that it supports (g++)")
    return CompileError(f"a kernel does not compile for {arch}: {text}", hint="report it with the layer's config")
