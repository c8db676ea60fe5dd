"""Compile random networks and compare each with float64 and with ONNX Runtime, element by element.

    python scripts/stress_networks.py [--count 5000] [--seed 0] [--seconds S] [--jobs N] [--json OUT.json]
                                      [--failures FOLDER]

Networks --seed to --seed + --count - 1 (tests/random_networks.py): products, convolutions, pools, norms, softmax,
residuals and data movement, with shapes that are 1 and prime among them and weights of every pattern. Each layer gets
any schedule template that matches it, with its default config or a random one. An output may be as far from float64 as
a running error analysis of float32 allows (checklib/running_error.py), and from ONNX Runtime twice as far. A network
that fails, crashes or hangs is saved with its inputs under its number. After --seconds no further network is begun.
--json is written as the run goes: a killed run says with its "unfinished" which networks it had begun. Exit code 1 when
a network failed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from checklib.in_memory import InMemory, any_config
from checklib.isolated import Outcome, call_isolated
from checklib.running_error import running_error

from sparsetvm.core.files import write_whole
from sparsetvm.core.target import host_target
from sparsetvm.frontend.load import load_model

_TESTS = Path(__file__).parents[1] / "tests"
sys.path.insert(0, str(_TESTS))
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
        if np.linalg.norm(bound) < np.linalg.norm(value):  # else float32 has no digit of it
            relative = max(relative, relative_error(ours, value))
    templates = sorted({config.template for config in compiled.configs.values()})
    return {"of_bound": worst, "rel_l2_error": relative, "layers": len(compiled.configs), "templates": templates}


class Tally:
    """What a run found so far."""

    def __init__(self, first_seed: int, jobs: int) -> None:
        self.first_seed, self.jobs, self.begun = first_seed, jobs, time.monotonic()
        self.networks = self.layers = 0
        self.kinds = {"mismatches": 0, "crashes": 0, "errors": 0}
        self.templates: Counter[str] = Counter()
        self.seeds_failed: list[int] = []
        self.unfinished: set[int] = set()
        self.worst = self.relative = 0.0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.begun

    def begin(self, seeds: Iterable[int], most: float) -> Iterator[int]:
        """The seeds, as long as there are seconds left."""
        for seed in seeds:
            if self.seconds > most:
                return
            self.unfinished.add(seed)
            yield seed

    def count(self, outcome: Outcome) -> None:
        self.networks += 1
        self.unfinished.discard(outcome.item)
        if outcome.error:
            mismatch, lost = "AssertionError" in outcome.error, outcome.error.startswith(("crash", "timeout"))
            self.kinds["mismatches" if mismatch else "crashes" if lost else "errors"] += 1
            self.seeds_failed.append(outcome.item)
            return
        self.worst = max(self.worst, outcome.result["of_bound"])
        self.relative = max(self.relative, outcome.result["rel_l2_error"])
        self.layers += outcome.result["layers"]
        self.templates.update(outcome.result["templates"])

    def figures(self) -> dict[str, Any]:
        return {
            "first_seed": self.first_seed, "networks": self.networks, "unfinished": sorted(self.unfinished),
            **self.kinds,
            "seeds_failed": sorted(self.seeds_failed), "layers": self.layers,
            "networks_using": dict(sorted(self.templates.items())), "worst_of_bound": self.worst,
            "worst_rel_l2_error": self.relative, "seconds": round(self.seconds, 1),
            "networks_per_second": round(self.networks / self.seconds, 3), "jobs": self.jobs,
        }  # fmt: skip

    def write(self, path: Path) -> None:
        """Whole or not at all: the run may be killed at any time."""
        passed = not self.seeds_failed
        text = json.dumps({"schema": 1, "passed": passed, **self.figures()}, indent=2)
        write_whole(path, lambda file: file.write(text.encode()))


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
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--failures", type=Path, default=Path("stress_networks_failures"))
    args = parser.parse_args()
    tally = Tally(args.seed, args.jobs)
    seeds = tally.begin(range(args.seed, args.seed + args.count), args.seconds)
    for outcome in call_isolated(check_network, seeds, args.jobs, _TIMEOUT):
        tally.count(outcome)
        if outcome.error:
            save_failure(args.failures, outcome.item, outcome.error)
            print(f"{outcome.item}: {outcome.error.strip().splitlines()[-1]}", file=sys.stderr, flush=True)
        if args.json:
            tally.write(args.json)
        if tally.networks % 100 == 0:
            print(
                f"{tally.networks} of {args.count}, {len(tally.seeds_failed)} failed, "
                f"{tally.networks / tally.seconds:.2f} networks/s", file=sys.stderr, flush=True,
            )  # fmt: skip
    figures = tally.figures()
    for name, value in figures.items():
        print(f"{name:>20}  {value}")
    print("FAILED" if tally.seeds_failed else "passed")
    return 1 if tally.seeds_failed else 0


if __name__ == "__main__":
    sys.exit(main())
