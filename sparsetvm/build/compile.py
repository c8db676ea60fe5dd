"""Graph + configs -> one .so and its manifest; several graphs, where a dimension stays open."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
import tvm
from tvm import relax

from sparsetvm.build.cuda_kernels import use_our_compiler
from sparsetvm.build.emit import Emitted, emit
from sparsetvm.build.emit_buckets import emit_buckets
from sparsetvm.build.fatbin import check_machine_code, linker
from sparsetvm.build.network import Network, Opened
from sparsetvm.build.tvm_target import tvm_target
from sparsetvm.build.write_in_place import cpu_pipeline
from sparsetvm.build.write_manifest import manifest_content
from sparsetvm.core.manifest import manifest_path, sha256_of
from sparsetvm.core.target import Target
from sparsetvm.core.weights_file import WeightsFile, weights_path, write_weights
from sparsetvm.errors import EnvironmentProblem, UsageError

_LIBRARY_BYTES = 64 << 10
_WRONG = ("error", "cannot", "failed", "No space")
_COMPILERS = ("c++", "g++", "clang++")


def find_cxx() -> str:
    """The C++ compiler that links the library: $CXX, c++, g++ or clang++. Raises EnvironmentProblem without one."""
    wanted = os.environ.get("CXX")
    for name in [wanted] if wanted else _COMPILERS:
        path = shutil.which(name)
        if path:
            return path
    raise EnvironmentProblem(
        f"no C++ compiler found ({wanted or ', '.join(_COMPILERS)}): it links the .so",
        hint="install one (Debian: apt-get install g++) or set CXX to its path",
    )


def check_can_write(output: Path) -> None:
    """Raise EnvironmentProblem when the library cannot be linked or written, before anything long is done."""
    find_cxx()
    if output.is_dir():
        raise EnvironmentProblem(f"cannot write '{output}': it is a folder", hint="name a file with -o")
    try:
        with tempfile.TemporaryFile(dir=output.parent):
            pass
    except OSError as error:
        raise _unwritable(output, error) from error


def _unwritable(output: Path, error: OSError) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"cannot write '{output}': {error.strerror or error}", hint="choose a writable folder with -o"
    )


def _least_size(networks: Sequence[Network]) -> int:
    """Bytes that the library has at the least: the non-zeros of layers, other constants and some code."""
    tasks = [network.tasks[name] for network in networks for name in network.choices]
    weights = {task.workload.pattern.digest: 4 * task.workload.nnz for task in tasks}
    values = networks[-1].graph.values.values()
    others = sum(value.data.nbytes for value in values if value.data is not None)
    return _LIBRARY_BYTES + sum(weights.values()) + others


def _check_room(folder: Path, size: int) -> None:
    """Raise OSError where a file of that size has no room: LLVM ends the whole process when it cannot write."""
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # file systems that cannot tell
                raise


def _unlinked(output: Path, error: RuntimeError) -> EnvironmentProblem:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    wrong = [line for line in lines if not line.endswith(":") and any(word in line for word in _WRONG)]
    said = wrong[0] if wrong else ""
    return EnvironmentProblem(
        f"'{output}' cannot be linked: {said or (lines or ['no message'])[-1]}",
        hint="check the free disk space and the C++ compiler (CXX); `sparsetvm doctor` tries it",
    )


def compile_networks(
    networks: Sequence[Network],
    target: Target,
    output: Path,
    model: dict[str, str],
    *,
    separate: bool = False,
    opened: Opened | None = None,
) -> Path:
    """Compile one network, or one for each bucket of the dimension that stays open, into the library `output`.

    Returns the path of its manifest. `model` is {"name", "sha256"} of the ONNX file. separate: packed weights go to a
    file of their own. All files appear complete or not at all.
    """
    cxx = find_cxx()
    if separate and (target.kind == "cuda" or opened is not None):
        what = "a GPU has weights of its own" if target.kind == "cuda" else "buckets share what is in the library"
        raise UsageError(f"--weights separate: {what}", hint="leave it out")
    executable, emitted = build_executable(networks, target, separate, opened)
    try:
        size = _least_size(networks)
        for place in (output.parent, Path(tempfile.gettempdir())):
            _check_room(place, size)
        with tempfile.TemporaryDirectory(dir=output.parent or Path(), prefix=".sparsetvm-") as folder:
            library = Path(folder) / output.name
            if target.kind == "cuda":
                executable.export_library(str(library), fcompile=linker(cxx, target.isa, Path(folder)))
                check_machine_code(library.read_bytes())
            else:
                executable.export_library(str(library), cc=cxx)
            manifest = Path(folder) / manifest_path(output).name
            content = manifest_content(networks, emitted.order, target, library, model, opened)
            if separate:
                weights = weights_path(library)
                arrays = write_weights(weights, emitted.weights)
                content["weights"] = WeightsFile(weights.name, sha256_of(weights), tuple(arrays))
                os.replace(weights, weights_path(output))
            text = msgspec.json.encode(content)
            manifest.write_bytes(msgspec.json.format(text, indent=2))
            os.replace(manifest, manifest_path(output))
            os.replace(library, output)
    except OSError as error:
        raise _unwritable(output, error) from error
    except RuntimeError as error:  # of the linker: TVM has no type of its own for it
        raise _unlinked(output, error) from error
    return manifest_path(output)


def build_executable(
    networks: Sequence[Network], target: Target, separate: bool = False, opened: Opened | None = None
) -> tuple[relax.VMExecutable, Emitted]:
    """Compile in memory; with the executable comes what was emitted: kernel calls and separate weights."""
    tvm_device = tvm_target(target)
    if target.kind == "cuda":
        use_our_compiler(target)
    if opened is None:
        (network,) = networks
        emitted = emit(network.graph, network.tasks, network.configs, target, separate)
    else:
        emitted = emit_buckets(networks, opened, target)
    with tvm.transform.PassContext(config={"relax.backend.use_cuda_graph": target.kind == "cuda"}), tvm_device:
        pipeline = relax.get_default_pipeline(tvm_device) if target.kind == "cuda" else cpu_pipeline(tvm_device)
        return relax.build(emitted.module, target=tvm_device, relax_pipeline=pipeline), emitted
