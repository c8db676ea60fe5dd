"""The speech-commands network dense, sparse-dense and sparse-sparse, beside ONNX Runtime, at batch 1.

    python scripts/bench_speech_commands.py [--sparsity 0.95] [--budget 60] [--seconds 10] [--json OUT.json]

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
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from benchlib.machine import describe_machine
from make_models import speech_commands

import sparsetvm
from sparsetvm.core.target import host_target
from sparsetvm.runtime.compare import BenchPlan, interleave
from sparsetvm.runtime.module import Module
from sparsetvm.runtime.verify import onnxruntime_session

NETWORKS = ("dense", "sparse-dense", "sparse-sparse", "sparse-dense blocks", "sparse-sparse blocks")
_SHAPE, _BASELINE = (1, 1, 32, 32), "onnxruntime dense"


def write_networks(folder: Path, sparsity: float) -> dict[str, Path]:
    paths = {name: folder / f"{name.replace(' ', '_')}.onnx" for name in NETWORKS}
    for name, path in paths.items():
        of_network = 0.0 if name == "dense" else sparsity
        speech_commands(path, 1, of_network, k_winners="sparse-sparse" in name, blocks="blocks" in name)
    return paths


def profiled(path: Path, feed: dict[str, np.ndarray], folder: Path, runs: int = 500) -> list[dict[str, Any]]:
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
    return [
        {"name": name, "op": op, "us": statistics.fmean(sorted(found)[tenth:-tenth])}
        for (name, op), found in times.items()
    ]


def compiled(model: Path, budget: float, log_dir: Path | None) -> Module:
    library = model.with_suffix(".so")
    if budget > 0:
        sparsetvm.tune(model, threads=1, budget=budget, log_dir=log_dir)
    sparsetvm.compile(model, library, threads=1, log_dir=log_dir)
    return sparsetvm.load(library, threads=1)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sparsity", type=float, default=0.95)
    parser.add_argument("--budget", type=float, default=0.0, metavar="SECONDS", help="of search for each network")
    parser.add_argument("--seconds", type=float, default=10.0, help="of timing in all")
    parser.add_argument("--log-dir", type=Path)
    parser.add_argument("--json", type=Path, metavar="PATH")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sparsetvm-bench-") as folder:
        paths = write_networks(Path(folder), args.sparsity)
        modules = {name: compiled(path, args.budget, args.log_dir) for name, path in paths.items()}
        sessions = {name: onnxruntime_session(path, 1) for name, path in paths.items()}
        errors = {name: compare(name, module, sessions[name]) for name, module in modules.items()}
        feed = {"x": np.random.default_rng(1).standard_normal(_SHAPE).astype(np.float32)}
        runs: dict[str, Any] = {f"ours {name}": module.prepared(feed) for name, module in modules.items()}
        for name in ("dense", "sparse-sparse"):
            runs[f"onnxruntime {name}"] = lambda session=sessions[name]: session.run(None, feed)
        timed = interleave({name: [run] for name, run in runs.items()}, BenchPlan(args.seconds / len(runs)))
        latency = {name: (statistics.median(found.times), min(found.times)) for name, found in timed.items()}
        layers = {name: module.per_layer(feed, seconds=1.0) for name, module in modules.items()}
        theirs = profiled(paths["dense"], feed, Path(folder))
    base = latency[_BASELINE]
    for name, (median, least) in latency.items():
        ratios = f"{base[0] / median:6.2f}x of {_BASELINE}, least {least * 1e3:.1f} us, {base[1] / least:.2f}x"
        print(f"{name:<27} {median * 1e3:9.1f} us  {ratios}")
    for name, times in layers.items():
        print(f"\n{name} (relative error {errors[name]:.1e})")
        for layer in times:
            print(f"    {layer.name:<24} {layer.op:<18} {layer.us:8.2f} us")
    print("\nonnxruntime dense")
    for row in theirs:
        print(f"    {row['name']:<24} {row['op']:<18} {row['us']:8.2f} us")
    if args.json:
        rows = {
            name: {"us": median * 1e3, "least_us": least * 1e3, "speedup": base[0] / median}
            for name, (median, least) in latency.items()
        }
        per_layer = {n: [{"name": t.name, "op": t.op, "us": t.us} for t in times] for n, times in layers.items()}
        per_layer["onnxruntime dense"] = theirs
        document = {"schema": 1, "machine": describe_machine(host_target(1)), "rows": rows, "layers": per_layer}
        args.json.write_text(json.dumps({**document, "rel_error": errors}, indent=2))


if __name__ == "__main__":
    main()
