"""Time a compiled model on a GPU in turn with PyTorch's fp32, tf32 and fp16; prints one line of JSON.

    python torch_worker.py LIBRARY MODEL INPUTS.npz SECONDS fp32,tf32,fp16

Inputs and outputs stay on the GPU. Each is one CUDA graph. "gpu": milliseconds per inference of inferences that follow
each other, by events; "wait": of one inference that is waited for, as a caller without a queue sees it.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ["TVM_FFI_DISABLE_TORCH_C_DLPACK"] = "1"  # else TVM compiles an extension for PyTorch while it is imported

import numpy as np
import torch

import sparsetvm
from benchlib.torch_model import TorchModel
from benchlib.torch_timing import capture, dtype_of, precision, time_replays
from sparsetvm.measure.timing import time_interleaved

_ROUNDS = 20


def main(library: Path, model: Path, inputs: Path, seconds: float, precisions: Sequence[str]) -> dict[str, Any]:
    """The JSON object."""
    module = sparsetvm.load(library)
    target = module.built_for
    if target is None or target.kind != "cuda":
        raise SystemExit(f"{library} was not compiled for a GPU")
    torch.cuda.set_device(target.device)
    with np.load(inputs, allow_pickle=False) as stored:
        feed = {name: stored[name] for name in stored.files}
    reference = module.run(feed)
    launches: dict[str, Callable[[], object]] = {"ours": module.launcher(feed)}
    errors: dict[str, float] = {}
    for name in precisions:
        with precision(name):
            network = TorchModel(model, target, "cuda", dtype_of(name))
            tensors = [network.tensor(feed[info.name]) for info in module.inputs]
            with torch.no_grad():
                outputs = network(*tensors)
            errors[name] = max(map(_error, outputs, reference.values()))
            launches[f"torch-{name}"] = capture(lambda network=network, tensors=tensors: network(*tensors)).replay
    gpu = _in_turn({name: time_replays(launch) for name, launch in launches.items()}, seconds)
    wait = _in_turn({name: _waited(launch) for name, launch in launches.items()}, seconds)
    return {"gpu": gpu, "wait": wait, "difference": errors, "device": torch.cuda.get_device_name()}


def _waited(launch: Callable[[], object]) -> Callable[[int], float]:
    def time_calls(number: int) -> float:
        begun = time.perf_counter()
        for _ in range(number):
            launch()
            torch.cuda.synchronize()
        return (time.perf_counter() - begun) / number

    return time_calls


def _in_turn(timers: dict[str, Callable[[int], float]], seconds: float) -> dict[str, float]:
    """Median milliseconds of rounds in shuffled order."""
    names, shuffle = list(timers), random.Random(0)
    orders = [shuffle.sample(range(len(names)), len(names)) for _ in range(_ROUNDS)]
    times: dict[str, list[float]] = {name: [] for name in names}
    for at, us in time_interleaved([timers[name] for name in names], orders, seconds):
        if us is not None:
            times[names[at]].append(us * 1e-3)
    return {name: statistics.median(values) for name, values in times.items()}


def _error(theirs: Any, ours: np.ndarray) -> float:
    """Relative L2 difference of PyTorch's output from ours."""
    array = theirs.float().cpu().numpy().astype(np.float64)
    return float(np.linalg.norm(array - ours) / max(np.linalg.norm(ours), 1e-30))


if __name__ == "__main__":
    *files, seconds, precisions = sys.argv[1:]
    result = main(*map(Path, files), float(seconds), [name for name in precisions.split(",") if name])
    print(json.dumps(result))
