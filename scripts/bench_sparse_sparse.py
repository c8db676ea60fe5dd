"""Sparse weights times sparse activations beside dense products, MKL's sparse kernel and our kernels of dense inputs.

    python scripts/bench_sparse_sparse.py [--sizes 2048,4096] [--mkl FOLDER] [--json OUT.json]
    python scripts/bench_sparse_sparse.py --target cuda [--sizes 2048,4096,16384] [--json OUT.json]

Two suites of square layers, all kernels of a case timed in turn in one process and checked against float64:

- batch 1, 95 % of the weights and 88 % of the activations zero (Numenta's setting), one row per pattern;
- 128 columns, 95 % of the weights zero, dense activations: the best of the patterns counts.

On a CPU one thread, beside OpenBLAS, ONNX Runtime, scipy and MKL; on a GPU cuBLAS and cuSPARSE through PyTorch. Kernels
of ours are the fastest of their templates' configs, found before the timing (on a GPU of some of them); for 128 columns
the defaults. Layers run in a loop on one X, so what they read stays in the caches that hold it. Times are the least of
25 rounds on a CPU, where other programs only ever add to them, and their medians on a GPU (both are in the JSON). Exit
code 1 when a result is wrong.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import msgspec
import numpy as np
from benchlib.case import matmul_task
from benchlib.kernel_row import time_in_turn
from benchlib.machine import describe_machine
from benchlib.mkl_sparse import load_mkl
from benchlib.sparse_inputs import CpuLayers, GpuLayers, Layers, fastest_of_each

from sparsetvm.core.target import Target, parse_target, version_of
from sparsetvm.core.task import Task
from sparsetvm.core.workload import activation_level
from sparsetvm.errors import EnvironmentProblem, SparseTvmError, UsageError
from sparsetvm.measure.reference import make_reference, random_input
from sparsetvm.measure.timing import TimeCalls

SPARSITY, ACTIVE = 0.95, 0.12
PATTERNS = {"unstructured": (1, 1), "block 4x1": (4, 1), "block 8x1": (8, 1), "block 16x1": (16, 1)}
GPU_NAMES = ("torch-fp32", "torch-tf32", "torch-fp16", "cusparse")


def random_weight(size: int, block: tuple[int, int], seed: int = 0) -> np.ndarray:
    """(size, size) float32, 5 % of the blocks non-zero at random places."""
    rng = np.random.default_rng(seed)
    keep = rng.random((size // block[0], size // block[1])) >= SPARSITY
    return (rng.standard_normal((size, size)) * np.kron(keep, np.ones(block))).astype(np.float32)


def make_task(size: int, n: int, block: tuple[int, int], target: Target, active: float) -> Task:
    task = matmul_task("layer", n, lambda: random_weight(size, block), target)
    if active < 1.0:
        task.workload = msgspec.structs.replace(task.workload, activation_density=activation_level(active))
    return task


def draw_input(task: Task, active: float) -> np.ndarray:
    """X of exactly the density that the case is about, not of its level."""
    x = random_input(msgspec.structs.replace(task.workload, activation_density=msgspec.UNSET), 1)
    return x * (np.random.default_rng(2).random(x.shape) < active)


def run_case(size: int, n: int, pattern: str, active: float, layers: Layers) -> dict[str, Any]:
    task = make_task(size, n, PATTERNS[pattern], layers.target, active)
    x = draw_input(task, active)
    reference = make_reference(task.workload, task.weight, None, 0, x)
    kernels = layers.ours(task, reference)
    timers: dict[str, TimeCalls] = {f"ours {kind}": trial.timer(None) for kind, (_, trial) in kernels.items()}
    times = time_in_turn(timers | layers.others(task, x, reference))
    us = fastest_of_each({name: layers.least(values) for name, values in times.items()})
    dense = min((us[name] for name in layers.dense if name in us), default=math.nan)
    mine = min(value for name, value in us.items() if name.startswith("ours"))
    return {
        "m": size, "n": n, "pattern": pattern, "weight_sparsity": SPARSITY, "activation_density": active, "us": us,
        "us_median": fastest_of_each({name: statistics.median(values) for name, values in times.items()}),
        "configs": {kind: str(config) for kind, (config, _) in kernels.items()},
        "over_dense": dense / mine,
        "over_mkl": us["mkl-sparse"] / mine if "mkl-sparse" in us else None,
        "over_cusparse": us["cusparse"] / mine if "cusparse" in us else None,
        "over_sparse_dense": us["ours sparse-dense"] / us.get("ours sparse-sparse", math.nan),
    }  # fmt: skip


def show(row: dict[str, Any]) -> str:
    times = "  ".join(f"{name} {us:.1f}" for name, us in sorted(row["us"].items(), key=lambda item: item[1]))
    ratios = f"{row['over_dense']:.1f}x dense"
    ratios += f", {row['over_mkl']:.1f}x MKL sparse" if row["over_mkl"] else ""
    ratios += f", {row['over_cusparse']:.1f}x cuSPARSE" if row["over_cusparse"] else ""
    ratios += f", {row['over_sparse_dense']:.2f}x our sparse-dense" if row["n"] == 1 else ""
    return f"{row['m']}^2 n={row['n']:<4} {row['pattern']:<13} {ratios}\n    us: {times}"


def layers_of(args: argparse.Namespace) -> Layers:
    """Raises UsageError and EnvironmentProblem for targets that cannot be measured here."""
    target = parse_target(args.target, 1)
    if target.kind == "cuda":
        if not target.host:
            raise UsageError(f"target '{target}' cannot be measured", hint="use --target cuda on a machine with a GPU")
        if version_of("torch") == "missing":
            print("without competitors: torch is not installed", file=sys.stderr)
        return GpuLayers(target, GPU_NAMES if version_of("torch") != "missing" else ())
    try:
        mkl = load_mkl(args.mkl)
    except EnvironmentProblem as problem:
        print(f"without MKL: {problem}", file=sys.stderr)
        mkl = None
    return CpuLayers(target, mkl)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--target", default="cpu", help="cpu (one thread), cuda or cuda:N")
    parser.add_argument("--sizes", default="2048,4096", metavar="M,...")
    parser.add_argument("--columns", default="1,128", metavar="N,...", help="of X: the suites to run")
    parser.add_argument("--patterns", default=",".join(PATTERNS), metavar="NAME,...")
    parser.add_argument("--active", type=float, default=ACTIVE, help="density of X for n = 1")
    parser.add_argument("--mkl", type=Path, metavar="FOLDER", help="where libmkl_rt.so.2 lies")
    parser.add_argument("--json", type=Path, metavar="PATH")
    args = parser.parse_args()
    try:
        layers = layers_of(args)
    except SparseTvmError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    rows: list[dict[str, Any]] = []
    for n in map(int, args.columns.split(",")):
        for size in map(int, args.sizes.split(",")):
            for pattern in args.patterns.split(","):
                rows.append(run_case(size, n, pattern, args.active if n == 1 else 1.0, layers))
                print(show(rows[-1]), flush=True)
                if args.json:
                    document = {"schema": 1, "machine": describe_machine(layers.target), "rows": rows}
                    args.json.write_text(json.dumps(document, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
