"""`sparsetvm doctor`: what this machine needs to tune, compile and run, each with the next step when it is missing."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparsetvm.core.results import DoctorReport
from sparsetvm.core.target import cpu_flags, default_threads, device_fingerprint, host_target, version_of
from sparsetvm.errors import EnvironmentProblem, SparseTvmError
from sparsetvm.measure.conditions import read_conditions

TVM_VERSION = "0.27.0.post1"
MIN_MEMORY_GIB = 2.0
_LINK_SECONDS = 30.0
_REINSTALL = "pip install --force-reinstall sparsetvm (in a fresh virtual environment)"


class _Failed(Exception):
    """A check that failed: what is wrong, and the next step."""

    def __init__(self, detail: str, next_step: str) -> None:
        super().__init__(detail)
        self.detail = detail
        self.next_step = next_step


def run_doctor() -> DoctorReport:
    """Run every check; none raises, and a failure does not stop the others."""
    checks: list[tuple[str, Callable[[], str]]] = [
        ("system", _system),
        ("versions", _versions),
        ("apache-tvm-ffi", _tvm_ffi),
        ("CPU", _cpu),
        ("cores", _cores),
        ("memory", _memory),
        ("C++ compiler", _compiler),
        ("log folder", _log_folder),
        ("log locks", _log_locks),
        ("variables", _variables),
        ("kernel", _kernel),
        ("measurement", _measurement),
        ("GPU", _gpu),
        ("CUDA compiler", _cuda_compiler),
    ]
    rows = [_run(name, check) for name, check in checks]
    return DoctorReport(ok=all(row["ok"] for row in rows), checks=rows)


def _run(name: str, check: Callable[[], str]) -> dict[str, Any]:
    try:
        return {"name": name, "ok": True, "detail": check()}
    except _Failed as error:
        return {"name": name, "ok": False, "detail": error.detail, "next_step": error.next_step}
    except SparseTvmError as error:
        return {"name": name, "ok": False, "detail": error.message, "next_step": error.hint or _REINSTALL}
    except Exception as error:
        # A check that breaks is a finding of its own: the report must come out on a broken machine.
        return {"name": name, "ok": False, "detail": f"{type(error).__name__}: {error}", "next_step": _REINSTALL}


def _system() -> str:
    libc = " ".join(platform.libc_ver()) or "unknown C library"
    return f"{platform.system()} {platform.release()}, {libc}, Python {platform.python_version()}, {platform.machine()}"


def _versions() -> str:
    packages = (
        *("sparsetvm", "apache-tvm", "numpy", "scipy", "onnx", "xgboost-cpu", "click", "rich", "msgspec"),
        "onnxruntime",
    )
    found = {package: version_of(package) for package in packages}
    optional = {"onnxruntime"}
    missing = [package for package, version in found.items() if version == "missing" and package not in optional]
    if missing:
        raise _Failed(f"not installed: {', '.join(missing)}", _REINSTALL)
    if found["apache-tvm"] != TVM_VERSION:
        raise _Failed(
            f"apache-tvm {found['apache-tvm']}, but this version needs {TVM_VERSION}",
            f"pip install apache-tvm=={TVM_VERSION}",
        )
    text = ", ".join(f"{package} {version}" for package, version in found.items() if version != "missing")
    hint = "; no onnxruntime: verify and bench need it (pip install 'sparsetvm[bench]')"
    return text + (hint if found["onnxruntime"] == "missing" else "")


def _tvm_ffi() -> str:
    """0.1.15 segfaults in tvm.ir.save_json, and the TVM wheel does not exclude it."""
    version = version_of("apache-tvm-ffi")
    if version == "missing" or not version.startswith("0.1.14"):
        raise _Failed(
            f"version {version}; only 0.1.14 is known to work (0.1.15 crashes)",
            "pip install 'apache-tvm-ffi>=0.1.14,<0.1.15'",
        )
    return version


def _cpu() -> str:
    target = host_target(1)
    known = ("fma", "avx2", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16")
    flags = " ".join(flag for flag in known if flag in cpu_flags())
    model = device_fingerprint(target).model
    noted = read_conditions()
    clock = ", ".join(word for word in (noted.governor, f"{noted.mhz:.0f} MHz" if noted.mhz else "") if word)
    slower = "" if target.isa == "avx512" else "; without AVX-512 the kernels use AVX2 and are about half as fast"
    caches = f"L1d {target.l1 >> 10} KiB, L2 {target.l2 >> 10} KiB"
    return f"{model}, {target.isa} as {target.mcpu}, {caches}{', ' + clock if clock else ''}, flags {flags}{slower}"


def _cores() -> str:
    usable, total = default_threads(), os.cpu_count() or 1
    return f"{usable} usable" + (f" of {total}" if usable != total else "")


def _memory() -> str:
    import psutil

    memory = psutil.virtual_memory()
    free, total = memory.available / 2**30, memory.total / 2**30
    if free < MIN_MEMORY_GIB:
        raise _Failed(
            f"{free:.1f} of {total:.1f} GiB free; large models need {MIN_MEMORY_GIB:.0f} GiB to compile",
            "close other programs, or compile on another machine (--target cpu,NAME)",
        )
    return f"{free:.1f} of {total:.1f} GiB free"


def find_compiler() -> str | None:
    """Path of the C++ compiler that links a .so, found as `build` finds it: $CXX, or the first of three names."""
    given = os.environ.get("CXX")
    for name in [given] if given else ["c++", "g++", "clang++"]:
        path = shutil.which(name)
        if path:
            return path
    return None


def _compiler() -> str:
    path = find_compiler()
    if path is None:
        raise _Failed(
            "none found; it links the .so", "install one: apt-get install g++ (or set CXX), then run doctor again"
        )
    with tempfile.TemporaryDirectory(prefix="sparsetvm-doctor-") as folder:
        source = Path(folder) / "empty.c"
        source.write_text("int sparsetvm_doctor;\n")
        command = [path, "-shared", "-fPIC", "-o", str(source.with_suffix(".so")), str(source)]
        linked = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_LINK_SECONDS)
    if linked.returncode:
        said = (linked.stderr.strip().splitlines() or ["no message"])[-1]
        raise _Failed(f"{path} links no shared library: {said}", "apt-get install g++, or set CXX to one that works")
    version = subprocess.run([path, "--version"], capture_output=True, text=True, check=False, timeout=_LINK_SECONDS)
    return f"{path}, {(version.stdout.splitlines() or ['version unknown'])[0]}; links a shared library"


def _log_folder() -> str:
    from sparsetvm.log.location import log_dir

    folder = log_dir()
    if not is_writable(folder):
        raise _Failed(f"cannot write to {folder}", "give --log-dir a writable folder, or mkdir tuning_logs here")
    logs = sorted(folder.glob("*.jsonl")) if folder.is_dir() else []
    size = sum(log.stat().st_size for log in logs)
    return f"{_short(folder)}, {len(logs)} logs, {size / 2**20:.1f} MiB"


def _short(path: Path) -> str:
    """With ~ for the home folder: the report is made to be pasted."""
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)


def _log_locks() -> str:
    """Tried where a log would be written; without locks each writer has a file of its own."""
    from sparsetvm.log.location import log_dir
    from sparsetvm.log.lock import NoLocks, locked

    folder = log_dir()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    with tempfile.TemporaryDirectory(prefix=".sparsetvm-doctor-", dir=folder) as scratch:
        try:
            with locked(Path(scratch) / "log.jsonl"):
                return "its file system locks files"
        except NoLocks:
            return (
                "its file system has no locks: each tune writes a file of its own; `sparsetvm log compact` joins them"
            )


def is_writable(folder: Path) -> bool:
    """True when a file can be made in `folder`, or in its nearest parent that exists."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _variables() -> str:
    from sparsetvm.settings import VARIABLES, read_settings, unknown_variables

    read_settings()
    unknown = unknown_variables()
    if unknown:
        raise _Failed("; ".join(unknown), "unset it, or correct its name (docs/cli.md lists them)")
    given = [name for name in VARIABLES if os.environ.get(name)]
    return ", ".join(f"{name}={os.environ[name]}" for name in given) or "none set"


def _measurement() -> str:
    """A layer measured as `tune` measures it: worker processes, the check of the result, the clock."""
    from sparsetvm.report.doctor_measure import measure_example

    told, wrong = measure_example(host_target(1))
    if wrong:
        raise _Failed("; ".join(wrong), "run it again on a quiet machine; if it stays, report it with this output")
    return told


def _gpu() -> str:
    """No GPU is no fault. One that is there must be usable."""
    from sparsetvm.core.cuda_runtime import load_cuda_runtime
    from sparsetvm.core.gpu import query_gpu

    try:
        gpu = query_gpu(0)
    except EnvironmentProblem as problem:
        return f"none: {problem.message}; --target cuda,sm_90 still compiles for one"
    load_cuda_runtime(to_run=True)
    return f"{gpu.name}, {gpu.arch}, {gpu.model.sms} multiprocessors, driver {gpu.driver}"


def _cuda_compiler() -> str:
    """Needed with a GPU, and to compile for one."""
    from sparsetvm.core.gpu import query_gpu
    from sparsetvm.measure.nvcc import find_compiler

    try:
        compiler = find_compiler()
    except EnvironmentProblem as problem:
        try:
            query_gpu(0)
        except EnvironmentProblem:
            return f"none; needed only for --target cuda ({problem.hint})"
        raise
    return f"{compiler.path or 'NVRTC'}, {compiler.version}"


def _kernel() -> str:
    """Build a loop for the host and run it: LLVM, the pinned TVM and its runtime work together."""
    import numpy as np
    import tvm
    from tvm import te

    target = host_target(1)
    x = te.placeholder((64,), "float32", name="x")
    y = te.compute((64,), lambda i: x[i] * 2 + 1, name="y")
    loop = tvm.compile(te.create_prim_func([x, y]), target=tvm.target.Target({"kind": "llvm", "mcpu": target.mcpu}))
    given = np.arange(64, dtype="float32")
    result = tvm.runtime.empty((64,), "float32")
    loop(tvm.runtime.tensor(given), result)
    if not np.array_equal(result.numpy(), given * 2 + 1):
        raise _Failed("a test kernel was built but computes something else", _REINSTALL)
    return f"a test kernel for {target.mcpu} was built and gives the right answer"
