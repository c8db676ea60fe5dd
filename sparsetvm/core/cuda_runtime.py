"""TVM's CUDA runtime (libtvm_runtime_cuda.so): loaded where a GPU is, and where one is only compiled for.

It is linked against NVIDIA's driver and CUDA's runtime library. `import tvm` drops it silently when the linker finds
one of them nowhere, and then TVM embeds source text where machine code belongs. So what it needs is loaded here first:
libcudart from the toolkit or from NVIDIA's Python package, and on a machine without a driver a library with the
driver's name whose functions all fail (nothing calls them while compiling).
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sparsetvm.core.cuda_driver import LIBRARY as DRIVER
from sparsetvm.errors import EnvironmentProblem

_RUNTIME = "libcudart.so.13"
_CREATE = "ffi.Module.create.cuda"
_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE
_RUNTIME_HINT = "pip install 'sparsetvm[cuda]', or install CUDA 13 and set CUDA_HOME"
# What libtvm_runtime_cuda.so takes from the driver.
_DRIVER_FUNCTIONS = (
    "cuDeviceGetName",
    "cuFuncSetAttribute",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuLaunchKernelEx",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuTensorMapEncodeTiled",
)


def load_cuda_runtime(*, to_run: bool) -> None:
    """Make TVM able to make CUDA modules, and with `to_run` to run them. Raises EnvironmentProblem with the remedy."""
    import tvm_ffi

    driver = _find_driver()
    if to_run and not hasattr(driver, "cuInit"):
        raise EnvironmentProblem(
            f"this model runs on an NVIDIA GPU, and no driver is here ({DRIVER} is missing)",
            hint="run it on a machine with an NVIDIA GPU and driver",
        )
    if driver is None:
        _load_stub_driver()
    _load_cudart()
    import tvm  # noqa: F401 - loads the CUDA runtime itself when all libraries are there
    from tvm.base import _LOADED_LIBS

    if tvm_ffi.get_global_func(_CREATE, allow_missing=True) is None:
        library = Path(_LOADED_LIBS["tvm_runtime"]._name).resolve().with_name("libtvm_runtime_cuda.so")
        try:
            _LOADED_LIBS["tvm_runtime_cuda"] = ctypes.CDLL(str(library))
        except OSError as error:
            raise EnvironmentProblem(f"TVM's CUDA runtime cannot be loaded: {error}", hint=_RUNTIME_HINT) from error
    if tvm_ffi.get_global_func(_CREATE, allow_missing=True) is None:
        raise EnvironmentProblem("this build of TVM has no CUDA runtime", hint="pip install apache-tvm==0.27.0.post1")


def _find_driver() -> ctypes.CDLL | None:
    """NVIDIA's driver, or the one below that was loaded before: it lacks cuInit."""
    try:
        return ctypes.CDLL(DRIVER, ctypes.RTLD_GLOBAL)
    except OSError:
        return None


def _load_stub_driver() -> None:
    """Compile and load a driver that fails. The loader knows it by its soname from then on."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))), None)
    if compiler is None:
        raise EnvironmentProblem(
            "compiling for a GPU on a machine without NVIDIA's driver needs a C compiler",
            hint="install one (Debian: apt-get install gcc) or set CC to its path",
        )
    functions = "".join(f"int {name}(void) {{ return {_NO_DEVICE}; }}\n" for name in _DRIVER_FUNCTIONS)
    with tempfile.TemporaryDirectory(prefix="sparsetvm-stub-") as folder:
        source, library = Path(folder, "stub.c"), Path(folder, DRIVER)
        source.write_text(functions, encoding="ascii")
        command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{DRIVER}", "-o", str(library), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            reason = done.stderr.strip().splitlines()
            raise EnvironmentProblem(
                f"'{compiler}' cannot build a library: {reason[-1] if reason else 'no message'}",
                hint="install a C compiler with its libraries (Debian: apt-get install gcc libc6-dev)",
            )
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)


def _load_cudart() -> None:
    for candidate in _cudart_candidates():
        try:
            ctypes.CDLL(candidate, ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        return
    raise EnvironmentProblem(f"CUDA's runtime library ({_RUNTIME}) is not found", hint=_RUNTIME_HINT)


def _cudart_candidates() -> Iterator[str]:
    """Where the linker looks, then the toolkit, then NVIDIA's Python packages (PyTorch brings them)."""
    yield _RUNTIME
    for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"):
        if home:
            yield from (str(Path(home, folder, _RUNTIME)) for folder in ("lib64", "lib"))
    package = importlib.util.find_spec("nvidia")
    for folder in (package.submodule_search_locations or ()) if package else ():
        yield from map(str, sorted(Path(folder).glob(f"*/lib/{_RUNTIME}")))
