"""OpenVINO as a competitor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sparsetvm.errors import EnvironmentProblem, UsageError
from sparsetvm.frontend.read import checked_digest


def openvino_request(model: Path, threads: int, *, float32: bool) -> Any:
    """An inference request of an ONNX model on the CPU.

    float32: compute in float32; otherwise OpenVINO chooses, bfloat16 on CPUs that have it, whatever the model says.
    Raises EnvironmentProblem when the package is missing or cannot load the model, ModelError for a file that our own
    reader refuses.
    """
    try:
        import openvino
    except ImportError as error:
        raise EnvironmentProblem("openvino is not installed", hint="pip install openvino") from error
    checked_digest(model)
    options: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    if float32:
        options["INFERENCE_PRECISION_HINT"] = "f32"
    try:
        return openvino.Core().compile_model(str(model), "CPU", options).create_infer_request()
    except RuntimeError as error:
        raise EnvironmentProblem(f"OpenVINO cannot load '{model}': {error}", hint="check the model file") from error


def openvino_run(model: Path, threads: int, feed: Mapping[str, Any], *, float32: bool) -> Callable[[], Any]:
    """A call that runs the model on `feed`, without copies of inputs or outputs. Raises UsageError for another feed."""
    request = openvino_request(model, threads, float32=float32)

    def run() -> Any:
        return request.infer(feed, share_inputs=True, share_outputs=True)

    try:
        run()
    except RuntimeError as error:
        raise UsageError(
            f"OpenVINO cannot run '{model}' on these inputs: {str(error).splitlines()[0]}",
            hint="pass the model that the .so was compiled from",
        ) from error
    return run
