"""Graph + configs -> one .so and its manifest."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import tvm
from tvm import relax

from sparsetvm.build.cuda_kernels import use_our_compiler
from sparsetvm.build.emit import Emitted, emit
from sparsetvm.build.fatbin import check_machine_code, linker
from sparsetvm.build.tvm_target import tvm_target
from sparsetvm.build.write_in_place import cpu_pipeline
from sparsetvm.core.arithmetic import Arithmetic, network_tolerance
from sparsetvm.core.config import Config
from sparsetvm.core.graph import Graph
from sparsetvm.core.manifest import FLOAT16_TOLERANCE, MANIFEST_SCHEMA, manifest_path, sha256_of
from sparsetvm.core.target import Target, toolchain_fingerprint
from sparsetvm.core.task import Task
from sparsetvm.core.weights_file import WeightsFile, weights_path, write_weights
from sparsetvm.errors import EnvironmentProblem, UsageError
from sparsetvm.schedules.base import arithmetic_of

_LIBRARY_BYTES = 64 << 10
_WRONG = ("error", "cannot", "failed", "No space")
_COMPILERS = ("c++", "g++", "clang++")


class LayerChoice(msgspec.Struct, frozen=True):
    """Which config a layer got, where it came from (TaskReport.source) and why; times in microseconds."""

    config: Config
    source: str
    best_us: float | None = None
    dense_us: float | None = None
    why: str = ""

    @property
    def arithmetic(self) -> Arithmetic:
        """What the layer's kernel computes in."""
        return arithmetic_of(self.config.template)


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


def _least_size(graph: Graph, tasks: Mapping[str, Task], choices: Mapping[str, LayerChoice]) -> int:
    """Bytes that the library has at the least: the non-zeros of layers, other constants and some code."""
    weights = {id(tasks[name]): 4 * tasks[name].workload.nnz for name in choices}
    others = sum(value.data.nbytes for value in graph.values.values() if value.data is not None)
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


def compile_graph(
    graph: Graph,
    tasks: Mapping[str, Task],
    choices: Mapping[str, LayerChoice],
    target: Target,
    output: Path,
    model: dict[str, str],
    separate: bool = False,
) -> Path:
    """Compile `graph` (after `rewrite`) into the library `output`; returns the path of its manifest.

    `model` is {"name", "sha256"} of the ONNX file. separate: packed weights go to a file of their own. All files appear
    complete or not at all.
    """
    cxx = find_cxx()
    configs = {name: choice.config for name, choice in choices.items()}
    if separate and target.kind == "cuda":
        raise UsageError("--weights separate: a GPU has weights of its own", hint="leave it out for --target cuda")
    executable, emitted = build_executable(graph, tasks, configs, target, separate)
    try:
        size = _least_size(graph, tasks, choices)
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
            content = _manifest(graph, tasks, choices, emitted.order, target, library, model)
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
    graph: Graph, tasks: Mapping[str, Task], configs: Mapping[str, Config], target: Target, separate: bool = False
) -> tuple[relax.VMExecutable, Emitted]:
    """Compile `graph` in memory; with the executable comes what was emitted: kernel calls and separate weights."""
    tvm_device = tvm_target(target)
    if target.kind == "cuda":
        use_our_compiler(target)
    emitted = emit(graph, tasks, configs, target, separate)
    with tvm.transform.PassContext(config={"relax.backend.use_cuda_graph": target.kind == "cuda"}), tvm_device:
        pipeline = relax.get_default_pipeline(tvm_device) if target.kind == "cuda" else cpu_pipeline(tvm_device)
        return relax.build(emitted.module, target=tvm_device, relax_pipeline=pipeline), emitted


def _manifest(
    graph: Graph,
    tasks: Mapping[str, Task],
    choices: Mapping[str, LayerChoice],
    kernels: list[dict[str, str]],
    target: Target,
    library: Path,
    model: dict[str, str],
) -> dict[str, Any]:
    versions = toolchain_fingerprint()
    return {
        "schema": MANIFEST_SCHEMA,
        "sparsetvm": versions.sparsetvm,
        "tvm": versions.tvm,
        "model": {**model, "arithmetic": "float16" if graph.float16 else "float32"},
        "library_sha256": sha256_of(library),
        "target": msgspec.to_builtins(target),
        "threads": target.threads,
        "inputs": [_tensor(graph, name, name) for name in graph.inputs],
        "outputs": [
            _tensor(graph, name, public) for name, public in zip(graph.outputs, graph.output_names, strict=True)
        ],
        "layers": [_layer(name, tasks[name], choice) for name, choice in choices.items()],
        "kernels": kernels,
        "tolerances": {"rel_l2_error": _tolerance(graph, choices)},
    }


def _tolerance(graph: Graph, choices: Mapping[str, LayerChoice]) -> float:
    """Largest relative L2 error that verify accepts."""
    of_layers = network_tolerance([choice.arithmetic for choice in choices.values()])
    return max(of_layers, FLOAT16_TOLERANCE) if graph.float16 else of_layers


def _tensor(graph: Graph, name: str, public: str) -> dict[str, Any]:
    value = graph.values[name]
    return {"name": public, "shape": graph.model_shape(name), "dtype": value.dtype}


def _layer(name: str, task: Task, choice: LayerChoice) -> dict[str, Any]:
    speedup = choice.dense_us / choice.best_us if choice.dense_us and choice.best_us else None
    return {
        "name": name,
        "workload": task.workload.describe(),
        "workload_id": task.workload.id,
        "pattern": task.workload.pattern.describe(),
        "sparsity": round(task.workload.pattern.sparsity, 6),
        "config": str(choice.config),
        "arithmetic": choice.arithmetic,
        "source": choice.source,
        "why": choice.why,
        "best_us": choice.best_us,
        "dense_us": choice.dense_us,
        "speedup": speedup,
    }
