"""OpenVINO as a competitor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sparsetvm.errors import EnvironmentProblem, UsageError
from sparsetvm.frontend.read import checked_digest


def openvino_request(model: Path, threads: int, *, float32: bool) -> Any:
    """An inference request of an ONNX model on the CPU; the arguments are those of `openvino_requests`."""
    return openvino_requests(model, threads, float32=float32)[0]


def openvino_requests(model: Path, threads: int, *, float32: bool, count: int = 1) -> list[Any]:
    """Inference requests of an ONNX model on the CPU that may run at the same time, each with `threads` threads.

    float32: compute in float32; otherwise OpenVINO chooses, bfloat16 on CPUs that have it, whatever the model says.
    Raises EnvironmentProblem when the package is missing or cannot load the model, ModelError for a file that our own
    reader refuses.
    """
    try:
        import openvino
    except ImportError as error:
        raise EnvironmentProblem("openvino is not installed", hint="pip install openvino") from error
    checked_digest(model)
    options: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": threads * count,
        "NUM_STREAMS": count,
        "PERFORMANCE_HINT": "LATENCY" if count == 1 else "THROUGHPUT",
    }
    if float32:
        options["INFERENCE_PRECISION_HINT"] = "f32"
    try:
        compiled = openvino.Core().compile_model(str(model), "CPU", options)
        return [compiled.create_infer_request() for _ in range(count)]
    except RuntimeError as error:
        raise EnvironmentProblem(f"OpenVINO cannot load '{model}': {error}", hint="check the model file") from error


def openvino_runs(
    model: Path, threads: int, feed: Mapping[str, Any], *, float32: bool, count: int = 1
) -> list[Callable[[], Any]]:
    """Calls that run the model on `feed`, without copies of inputs or outputs, `count` of them at the same time.

    Raises UsageError for another feed.
    """

    def run_of(request: Any) -> Callable[[], Any]:
        return lambda: request.infer(feed, share_inputs=True, share_outputs=True)

    runs = [run_of(request) for request in openvino_requests(model, threads, float32=float32, count=count)]
    try:
        runs[0]()
    except RuntimeError as error:
        raise UsageError(
            f"OpenVINO cannot run '{model}' on these inputs: {str(error).splitlines()[0]}",
            hint="pass the model that the .so was compiled from",
        ) from error
    return runs
