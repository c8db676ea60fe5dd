"""The speech-commands network dense, sparse-dense and sparse-sparse, beside ONNX Runtime, at batch 1.

    python scripts/bench_speech_commands.py [--sparsity 0.95] [--budget 60] [--seconds 10] [--json OUT.json]
    python scripts/bench_speech_commands.py --target cuda [--budget 20] [--json OUT.json]

The networks are those of make_models.py, with random weights: a test of speed, not of accuracy. "dense" and
"sparse-dense" have ReLU, "sparse-sparse" k-winners. Of either there is one with single weights pruned and one with
blocks of 16 filters and of 4 hidden units. ONNX Runtime's dense network is the baseline; it runs the others no faster,
for it they are dense. --budget: seconds of search for each network, else default configs. One thread; all are timed in
turn in one process, and their outputs compared with ONNX Runtime's on random, empty and extreme inputs first. Layers:
their kernels alone, and of ONNX Runtime what its profiler says, which includes its overhead for each node.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from benchlib.machine import describe_machine
from benchlib.model_row import Failed, time_torch
from make_models import speech_commands

import sparsetvm
from sparsetvm.core.results import LayerTime
from sparsetvm.core.target import parse_target, version_of
from sparsetvm.errors import SparseTvmError, UsageError
from sparsetvm.runtime.compare import BenchPlan, interleave
from sparsetvm.runtime.module import Module
from sparsetvm.runtime.verify import onnxruntime_session

NETWORKS = ("dense", "sparse-dense", "sparse-sparse", "sparse-dense blocks", "sparse-sparse blocks")
_SHAPE = (1, 1, 32, 32)


@dataclass(frozen=True)
class Times:
    """latency: microseconds by what was run, median and least (on a GPU the median twice). layers: of kernels, also of
    ONNX Runtime's.
    """

    latency: dict[str, tuple[float, float]]
    layers: dict[str, list[Any]]


def write_networks(folder: Path, sparsity: float) -> dict[str, Path]:
    paths = {name: folder / f"{name.replace(' ', '_')}.onnx" for name in NETWORKS}
    for name, path in paths.items():
        of_network = 0.0 if name == "dense" else sparsity
        speech_commands(path, 1, of_network, k_winners="sparse-sparse" in name, blocks="blocks" in name)
    return paths


def profiled(path: Path, feed: dict[str, np.ndarray], folder: Path, runs: int = 500) -> list[LayerTime]:
    """Microseconds of each node of a model in ONNX Runtime, one thread: the mean of the middle 80 % of its times, which
    the profiler has in whole ones.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_profiling, options.profile_file_prefix = True, str(folder / "profile")
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    for _ in range(runs):
        session.run(None, feed)
    times: dict[tuple[str, str], list[float]] = {}
    for event in json.loads(Path(session.end_profiling()).read_text()):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            key = event["name"].removesuffix("_kernel_time"), event["args"]["op_name"]
            times.setdefault(key, []).append(event["dur"])
    tenth = runs // 10
    us = {node: statistics.fmean(sorted(found)[tenth:-tenth]) for node, found in times.items()}
    total = sum(us.values()) or math.nan
    return [LayerTime(name=name, op=op, kernel=name, us=mean, share=mean / total) for (name, op), mean in us.items()]


def compiled(model: Path, target: str, budget: float, log_dir: Path | None) -> Path:
    library = model.with_suffix(".so")
    if budget > 0:
        sparsetvm.tune(model, target=target, threads=1, budget=budget, log_dir=log_dir)
    sparsetvm.compile(model, library, target=target, threads=1, log_dir=log_dir)
    return library


def compare(name: str, module: Module, session: Any) -> float:
    """Largest relative L2 error over inputs of all kinds. Ends the program when one is off."""
    rng = np.random.default_rng(0)
    normal = rng.standard_normal(_SHAPE).astype(np.float32)
    inputs = [normal, np.zeros_like(normal), np.ones_like(normal), 1e4 * normal, 1e-4 * normal, np.abs(normal)]
    worst = 0.0
    for x in inputs:
        expected = session.run(None, {"x": x})[0].astype(np.float64)
        found = module.run({"x": x})["output"]
        worst = max(worst, float(np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-30)))
    if not worst <= 1e-5:
        raise SystemExit(f"{name}: relative L2 error {worst:.2e}")
    return worst


def time_cpu(libraries: dict[str, Path], dense: Path, sessions: dict[str, Any], seconds: float) -> Times:
    """Microseconds of ours and of ONNX Runtime, in turn; of each kernel. dense: the network that counts."""
    modules = {name: sparsetvm.load(library, threads=1) for name, library in libraries.items()}
    feed = {"x": np.random.default_rng(1).standard_normal(_SHAPE).astype(np.float32)}
    runs: dict[str, Any] = {f"ours {name}": module.prepared(feed) for name, module in modules.items()}
    for name in ("dense", "sparse-sparse"):
        runs[f"onnxruntime {name}"] = lambda session=sessions[name]: session.run(None, feed)
    timed = interleave({name: [run] for name, run in runs.items()}, BenchPlan(seconds / len(runs)))
    latency = {name: (1e3 * statistics.median(found.times), 1e3 * min(found.times)) for name, found in timed.items()}
    layers = {name: module.per_layer(feed, seconds=1.0) for name, module in modules.items()}
    return Times(latency, {**layers, "onnxruntime dense": profiled(dense, feed, dense.parent)})


def time_gpu(libraries: dict[str, Path], paths: dict[str, Path], folder: Path, torch: bool) -> Times:
    """Microseconds on the GPU, by events: each of ours in turn with PyTorch's dense network, which counts from the run
    of the dense one of ours.
    """
    np.savez(inputs := folder / "inputs.npz", x=np.random.default_rng(1).standard_normal(_SHAPE).astype(np.float32))
    latency: dict[str, tuple[float, float]] = {}
    for name, library in libraries.items():
        found = time_torch(library, paths["dense"], inputs, "fp32,tf32,fp16" if torch else "")["gpu"]
        latency[f"ours {name}"] = 2 * (1e3 * found.pop("ours"),)
        for other, ms in found.items():
            latency.setdefault(f"{other} dense", 2 * (1e3 * ms,))
    return Times(latency, {})


def show(times: Times, errors: dict[str, float], baseline: str) -> None:
    base = times.latency.get(baseline, (math.nan, math.nan))
    for name, (median, least) in times.latency.items():
        ratios = f"{base[0] / median:6.2f}x of {baseline}, least {least:.1f} us, {base[1] / least:.2f}x"
        print(f"{name:<27} {median:9.1f} us  {ratios}")
    for name in dict.fromkeys((*errors, *times.layers)):
        print(f"\n{name} (relative error {errors[name]:.1e})" if name in errors else f"\n{name}")
        for layer in times.layers.get(name, []):
            print(f"    {layer.name:<24} {layer.op:<18} {layer.us:8.2f} us")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--target", default="cpu", help="cpu (one thread), cuda or cuda:N")
    parser.add_argument("--sparsity", type=float, default=0.95)
    parser.add_argument("--budget", type=float, default=0.0, metavar="SECONDS", help="of search for each network")
    parser.add_argument("--seconds", type=float, default=10.0, help="of timing in all, on a CPU")
    parser.add_argument("--log-dir", type=Path)
    parser.add_argument("--json", type=Path, metavar="PATH")
    args = parser.parse_args()
    try:
        target = parse_target(args.target, 1)
        if not target.host:
            raise UsageError(f"target '{target}' cannot be measured", hint="use cpu, or cuda on a machine with a GPU")
        with tempfile.TemporaryDirectory(prefix="sparsetvm-bench-") as folder:
            paths = write_networks(Path(folder), args.sparsity)
            libraries = {name: compiled(path, args.target, args.budget, args.log_dir) for name, path in paths.items()}
            sessions = {name: onnxruntime_session(path, 1) for name, path in paths.items()}
            errors = {}
            for name, library in libraries.items():
                with sparsetvm.load(library, threads=1) as module:
                    errors[name] = compare(name, module, sessions[name])
            if target.kind == "cuda":
                baseline = "torch-fp32 dense"
                times = time_gpu(libraries, paths, Path(folder), version_of("torch") != "missing")
            else:
                baseline, times = "onnxruntime dense", time_cpu(libraries, paths["dense"], sessions, args.seconds)
    except (SparseTvmError, Failed) as error:
        print(f"error: {error}", file=sys.stderr)
        return getattr(error, "exit_code", 1)
    show(times, errors, baseline)
    if args.json:
        base = times.latency.get(baseline, (math.nan, math.nan))[0]
        rows = {
            name: {"us": median, "least_us": least, "speedup": base / median}
            for name, (median, least) in times.latency.items()
        }
        layers = {n: [{"name": t.name, "op": t.op, "us": t.us} for t in found] for n, found in times.layers.items()}
        document = {"schema": 1, "machine": describe_machine(target), "rows": rows, "layers": layers}
        args.json.write_text(json.dumps({**document, "rel_error": errors}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
