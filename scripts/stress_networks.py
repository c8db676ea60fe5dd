"""Compile random networks and compare each with float64 and with ONNX Runtime, element by element.

    python scripts/stress_networks.py [--count 5000] [--seed 0] [--jobs N] [--json OUT.json] [--failures FOLDER]

Networks --seed to --seed + --count - 1 (tests/cpu/random_networks.py): products, convolutions, pools, norms, softmax,
residuals and data movement, with shapes that are 1 and prime among them and weights of every pattern. Each layer gets
any schedule template that matches it, with its default config or a random one. An output may be as far from float64 as
a running error analysis of float32 allows (checklib/running_error.py), and from ONNX Runtime twice as far. A network
that fails, crashes or hangs is saved with its inputs under its number. Exit code 1 when there is one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from checklib.in_memory import InMemory, any_config
from checklib.isolated import call_isolated
from checklib.running_error import running_error

from sparsetvm.core.target import host_target
from sparsetvm.frontend.load import load_model

_TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(_TESTS), str(_TESTS / "cpu")]
from models import random_inputs, relative_error, run_onnxruntime  # noqa: E402
from random_networks import random_network  # noqa: E402

_TIMEOUT = 300.0


def check_network(seed: int) -> dict[str, Any]:
    """Compile, run and compare network `seed`. Raises AssertionError, or what the compiler raised."""
    builder = random_network(seed, wide=True)
    model = builder.model()
    inputs = random_inputs(model, seed)
    with tempfile.TemporaryDirectory(prefix="sparsetvm-stress-") as folder:
        path = builder.save(Path(folder) / "model.onnx")
        compiled = InMemory(path, host_target(1), any_config(random.Random(seed)))
        graph = load_model(path).graph
    exact = running_error(graph, inputs)
    found, theirs = compiled.run(inputs), run_onnxruntime(model, inputs)
    worst = relative = 0.0
    for name, ours in found.items():
        value, bound = exact[name]
        assert ours.shape == value.shape, f"output '{name}': shape {ours.shape}, not {value.shape}"
        for what, other, limit in (("float64", value, bound), ("ONNX Runtime", theirs[name], 2 * bound)):
            off = np.abs(ours.astype(np.float64) - other) / np.maximum(limit, 1e-300)
            off = np.where(np.isnan(off), np.inf, off)
            assert (off <= 1.0).all(), f"output '{name}' is off from {what} by {off.max():.3g} of the bound"
            worst = max(worst, float(off.max()))
        relative = max(relative, relative_error(ours, value))
    templates = sorted({config.template for config in compiled.configs.values()})
    return {"of_bound": worst, "rel_l2_error": relative, "layers": len(compiled.configs), "templates": templates}


def save_failure(folder: Path, seed: int, error: str) -> None:
    """The network, its inputs and what went wrong."""
    folder.mkdir(parents=True, exist_ok=True)
    builder = random_network(seed, wide=True)
    builder.save(folder / f"{seed}.onnx")
    np.savez(folder / f"{seed}.npz", **random_inputs(builder.model(), seed))
    (folder / f"{seed}.txt").write_text(error)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--failures", type=Path, default=Path("stress_networks_failures"))
    args = parser.parse_args()
    begun = time.monotonic()
    kinds = {"mismatches": 0, "crashes": 0, "errors": 0}
    templates: dict[str, int] = {}
    failed, worst, relative, layers, done = [], 0.0, 0.0, 0, 0
    for outcome in call_isolated(check_network, range(args.seed, args.seed + args.count), args.jobs, _TIMEOUT):
        done += 1
        if outcome.error:
            mismatch = "AssertionError" in outcome.error
            lost = outcome.error.startswith(("crash", "timeout"))
            kinds["mismatches" if mismatch else "crashes" if lost else "errors"] += 1
            failed.append(outcome.item)
            save_failure(args.failures, outcome.item, outcome.error)
            print(f"{outcome.item}: {outcome.error.strip().splitlines()[-1]}", file=sys.stderr, flush=True)
        else:
            worst = max(worst, outcome.result["of_bound"])
            relative = max(relative, outcome.result["rel_l2_error"])
            layers += outcome.result["layers"]
            for name in outcome.result["templates"]:
                templates[name] = templates.get(name, 0) + 1
        if done % 100 == 0:
            rate = done / (time.monotonic() - begun)
            print(f"{done} of {args.count}, {len(failed)} failed, {rate:.2f} networks/s", file=sys.stderr, flush=True)
    seconds = time.monotonic() - begun
    figures = {
        "networks": done, **kinds, "seeds_failed": sorted(failed), "layers": layers, "networks_using": templates,
        "worst_of_bound": worst, "worst_rel_l2_error": relative,
        "seconds": round(seconds, 1), "networks_per_second": round(done / seconds, 3), "jobs": args.jobs,
    }  # fmt: skip
    for name, value in figures.items():
        print(f"{name:>20}  {value}")
    print("FAILED" if failed else "passed")
    if args.json:
        args.json.write_text(
            json.dumps({"schema": 1, "passed": not failed, "first_seed": args.seed, **figures}, indent=2)
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
