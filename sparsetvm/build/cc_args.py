"""What a C++ compiler needs to build a program that runs compiled models: folders of this installation.

TVM is found, not imported: finding it takes milliseconds.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from sparsetvm.errors import EnvironmentProblem


def cc_args(kind: str = "cpu") -> list[str]:
    """Arguments for g++ or clang++, in an order that works after the source files; kind: "cpu" or "cuda".

    For "cuda" the folder of CUDA's own runtime is not among them: it is no part of this installation.
    """
    runtime, ffi = _folder("tvm") / "lib", _folder("tvm_ffi")
    # TVM registers its virtual machine when its library is loaded: it is linked although no symbol of it is named.
    libraries = ["-ltvm_runtime", *(["-ltvm_runtime_cuda"] if kind == "cuda" else []), "-ltvm_ffi"]
    linking = "-Wl,--no-as-needed" + (",--allow-shlib-undefined" if kind == "cuda" else "")
    return [
        "-std=c++17",
        f"-I{ffi / 'include'}",
        f"-L{runtime}",
        f"-L{ffi / 'lib'}",
        linking,
        *libraries,
        f"-Wl,-rpath,{runtime}:{ffi / 'lib'}",
    ]


def _folder(package: str) -> Path:
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise EnvironmentProblem(f"{package} is not installed", hint="pip install --force-reinstall sparsetvm")
    return Path(found.submodule_search_locations[0])
