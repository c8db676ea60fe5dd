"""Sparse weights times sparse activations beside dense products, MKL's sparse kernel and our kernels of dense inputs.

    python scripts/bench_sparse_sparse.py [--sizes 2048,4096] [--mkl FOLDER] [--json OUT.json]

Two suites of square layers, one thread, all kernels of a case timed in turn in one process and checked against float64:

- batch 1, 95 % of the weights and 88 % of the activations zero (Numenta's setting), one row per pattern;
- 128 columns, 95 % of the weights zero, dense activations: the best of the patterns counts.

Kernels of ours are the fastest of their templates' configs, found before the timing; for 128 columns the defaults.
Layers run in a loop on one X, so what they read stays in the caches that hold it. Times are the least of 25 rounds:
other programs only ever add to them (medians are in the JSON). Exit code 1 when a result is wrong.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import msgspec
import numpy as np
from benchlib.case import matmul_task
from benchlib.competitors import competitors_of
from benchlib.kernel_row import time_in_turn, time_python
from benchlib.machine import describe_machine
from benchlib.mkl_sparse import load_mkl, mkl_product
from sparsetvm.schedules.base import matching, template

from sparsetvm.core.config import Config
from sparsetvm.core.target import Target, host_target
from sparsetvm.core.task import Task
from sparsetvm.core.workload import activation_level
from sparsetvm.errors import EnvironmentProblem
from sparsetvm.measure.candidate import Trial
from sparsetvm.measure.compile import build
from sparsetvm.measure.reference import TOLERANCE, Reference, make_reference, random_input, to_physical
from sparsetvm.measure.timing import TimeCalls

SPARSITY, ACTIVE = 0.95, 0.12
PATTERNS = {"unstructured": (1, 1), "block 4x1": (4, 1), "block 8x1": (8, 1), "block 16x1": (16, 1)}
SPARSE_SPARSE = "x86.spmv_columns"


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


def fastest(task: Task, configs: list[Config], target: Target, reference: Reference) -> tuple[Config, Trial]:
    """The config with the best time of a few, and its kernel."""
    best: tuple[float, Config, Trial] | None = None
    for config in configs:
        trial = Trial(build(task, config, target, template), [reference])
        if trial.check().status != "ok":
            raise SystemExit(f"{config}: wrong")
        timer = trial.timer(None)
        timer(20)
        us = min(timer(50) for _ in range(5)) * 1e6
        if best is None or us < best[0]:
            best = us, config, trial
    if best is None:
        raise SystemExit("no config")
    return best[1], best[2]


def ours(task: Task, target: Target, reference: Reference) -> dict[str, tuple[Config, Trial]]:
    """Our kernels by what they make use of: nothing, the zeros of W, those of X too."""
    groups: dict[str, list[Config]] = {"sparse-dense": [], "sparse-sparse": [], "dense": []}
    for found in matching(task.workload, target):
        kind = "dense" if found.dense else "sparse-sparse" if found.name == SPARSE_SPARSE else "sparse-dense"
        few = list(found.space(task.workload, target)) if task.workload.n == 1 else []
        groups[kind] += few or [found.default(task.workload, target)]
    return {kind: fastest(task, configs, target, reference) for kind, configs in groups.items() if configs}


def run_case(size: int, n: int, pattern: str, active: float, target: Target, mkl: Any) -> dict[str, Any]:
    task = make_task(size, n, PATTERNS[pattern], target, active)
    x = draw_input(task, active)
    reference = make_reference(task.workload, task.weight, None, 0, x)
    kernels = ours(task, target, reference)
    timers: dict[str, TimeCalls] = {f"ours {kind}": trial.timer(None) for kind, (_, trial) in kernels.items()}
    with tempfile.TemporaryDirectory() as folder:
        others = competitors_of(task, {"x": x}, ["numpy", "onnxruntime", "scipy"], 1, Path(folder))
        for other in others:
            agree(other.name, other.output(), reference)
            timers[other.name] = time_python(other.run)
        if mkl is not None:
            run, y = mkl_product(mkl, task.weight, x[0] if n == 1 else x.T)
            run()
            agree("mkl", np.ascontiguousarray(y.reshape(size, n).T), reference)
            timers["mkl-sparse"] = time_python(run)
        times = time_in_turn(timers)
    us = {name: min(values) for name, values in times.items()}
    dense = min(us[name] for name in ("numpy", "onnxruntime"))
    mine = min(value for name, value in us.items() if name.startswith("ours"))
    return {
        "m": size, "n": n, "pattern": pattern, "weight_sparsity": SPARSITY, "activation_density": active, "us": us,
        "us_median": {name: statistics.median(values) for name, values in times.items()},
        "configs": {kind: str(config) for kind, (config, _) in kernels.items()},
        "over_dense": dense / mine,
        "over_mkl": us["mkl-sparse"] / mine if "mkl-sparse" in us else None,
        "over_sparse_dense": us["ours sparse-dense"] / us.get("ours sparse-sparse", math.nan),
    }  # fmt: skip


def agree(name: str, output: np.ndarray, reference: Reference) -> None:
    error = reference.error(to_physical(reference.workload.layout_out, output))
    if not error <= TOLERANCE:
        raise SystemExit(f"{name}: relative L2 error {error:.2e}")


def show(row: dict[str, Any]) -> str:
    times = "  ".join(f"{name} {us:.1f}" for name, us in sorted(row["us"].items(), key=lambda item: item[1]))
    ratios = f"{row['over_dense']:.1f}x dense"
    ratios += f", {row['over_mkl']:.1f}x MKL sparse" if row["over_mkl"] else ""
    ratios += f", {row['over_sparse_dense']:.2f}x our sparse-dense" if row["n"] == 1 else ""
    return f"{row['m']}^2 n={row['n']:<4} {row['pattern']:<13} {ratios}\n    us: {times}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", default="2048,4096", metavar="M,...")
    parser.add_argument("--columns", default="1,128", metavar="N,...", help="of X: the suites to run")
    parser.add_argument("--patterns", default=",".join(PATTERNS), metavar="NAME,...")
    parser.add_argument("--active", type=float, default=ACTIVE, help="density of X for n = 1")
    parser.add_argument("--mkl", type=Path, metavar="FOLDER", help="where libmkl_rt.so.2 lies")
    parser.add_argument("--json", type=Path, metavar="PATH")
    args = parser.parse_args()
    target = host_target(1)
    try:
        mkl = load_mkl(args.mkl)
    except EnvironmentProblem as problem:
        print(f"without MKL: {problem}", file=sys.stderr)
        mkl = None
    rows = []
    for n in map(int, args.columns.split(",")):
        for size in map(int, args.sizes.split(",")):
            for pattern in args.patterns.split(","):
                rows.append(run_case(size, n, pattern, args.active if n == 1 else 1.0, target, mkl))
                print(show(rows[-1]), flush=True)
    if args.json:
        args.json.write_text(json.dumps({"schema": 1, "machine": describe_machine(target), "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
