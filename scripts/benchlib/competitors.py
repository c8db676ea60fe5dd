"""What a layer is compared with: dense products that ship, and the sparse one of scipy. All compute in float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse

from benchlib.layer_model import write_layer_model
from sparsetvm.core.target import version_of
from sparsetvm.core.task import Task
from sparsetvm.errors import EnvironmentProblem, UsageError, did_you_mean
from sparsetvm.runtime.openvino import openvino_request
from sparsetvm.runtime.verify import onnxruntime_session

_ON_MODELS = ("onnxruntime", "openvino-f32")
# What --against takes -> (key of the JSON, package).
_KNOWN = {
    "numpy": ("numpy", "numpy"),
    "ort": ("onnxruntime", "onnxruntime"),
    "openvino": ("openvino-f32", "openvino"),
    "scipy": ("scipy", "scipy"),
}


@dataclass(frozen=True)
class Competitor:
    """run: the layer once, on arrays that stay where they are. output: runs it and returns Y in its logical shape.

    dense: whether it counts as a dense competitor: zeros ignored.
    """

    name: str
    run: Callable[[], object]
    output: Callable[[], np.ndarray]
    dense: bool = True


def competitors_of(
    task: Task, inputs: dict[str, np.ndarray], names: Sequence[str], threads: int, folder: Path
) -> list[Competitor]:
    """Those of `names` that can compute the layer; numpy and scipy only know products.

    inputs: logical "x", and "residual" where the layer has one. folder: takes the model file that some of them load.
    """
    makers: dict[str, Callable[[], Competitor]] = {}
    if task.workload.conv is None:
        makers |= {"numpy": lambda: _numpy(task, inputs["x"]), "scipy": lambda: _scipy(task, inputs["x"])}
    model = folder / "layer.onnx"
    if set(names) & set(_ON_MODELS):
        write_layer_model(model, task)
    makers |= {
        "onnxruntime": lambda: _onnxruntime(model, inputs, threads),
        "openvino-f32": lambda: _openvino(model, inputs, threads),
    }
    return [makers[name]() for name in names if name in makers]


def parse_names(text: str | None) -> list[str]:
    """ "numpy,ort" -> keys of the JSON; None stands for all that are installed.

    Raises UsageError for an unknown competitor, EnvironmentProblem for one that is not installed.
    """
    if text is None:
        return [key for key, package in _KNOWN.values() if version_of(package) != "missing"]
    found = []
    for name in (part for part in text.split(",") if part not in ("", "none")):
        if name not in _KNOWN:
            raise UsageError(
                f"--against {name}: unknown competitor{did_you_mean(name, _KNOWN)}",
                hint=f"known: {', '.join(_KNOWN)}, none",
            )
        key, package = _KNOWN[name]
        if version_of(package) == "missing":
            raise EnvironmentProblem(
                f"{package} is not installed", hint=f"pip install {package}, or leave it out of --against"
            )
        found.append(key)
    return found


def _numpy(task: Task, x: np.ndarray) -> Competitor:
    """W X with X[k, n] as matrices, a matrix times a vector for n = 1."""
    columns = _columns(x)
    y = np.empty((task.workload.m, *columns.shape[1:]), np.float32)

    def run() -> np.ndarray:
        return np.matmul(task.weight, columns, out=y)

    return Competitor("numpy", run, lambda: _rows(run()))


def _scipy(task: Task, x: np.ndarray) -> Competitor:
    columns, sparse = _columns(x), scipy.sparse.csr_array(task.weight)
    return Competitor("scipy", lambda: sparse @ columns, lambda: _rows(sparse @ columns), dense=False)


def _columns(x: np.ndarray) -> np.ndarray:
    return x[0].copy() if len(x) == 1 else np.ascontiguousarray(x.T)


def _rows(y: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(y.reshape(len(y), -1).T)


def _onnxruntime(model: Path, inputs: dict[str, np.ndarray], threads: int) -> Competitor:
    """With bound inputs and output: no copies, no allocation."""
    session = onnxruntime_session(model, threads)
    y = np.empty(session.get_outputs()[0].shape, np.float32)
    binding = session.io_binding()
    for name, array in inputs.items():
        binding.bind_input(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
    binding.bind_output("y", "cpu", 0, np.float32, y.shape, y.ctypes.data)

    def run() -> np.ndarray:
        session.run_with_iobinding(binding)
        return y

    return Competitor("onnxruntime", run, run)


def _openvino(model: Path, inputs: dict[str, np.ndarray], threads: int) -> Competitor:
    """With inputs and output in our own memory, as for ONNX Runtime."""
    import openvino

    request = openvino_request(model, threads, float32=True)
    for name, array in inputs.items():
        request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
    y = np.empty(tuple(request.get_output_tensor().shape), np.float32)
    request.set_tensor("y", openvino.Tensor(y, shared_memory=True))

    def run() -> np.ndarray:
        request.infer()
        return y

    return Competitor("openvino-f32", run, run)
