"""Make wrong kernels of the real templates and put them through the real measurer: none may be selected.

    python scripts/stress_kernels.py [--mutants 1000] [--json OUT.json]

A mutant is a kernel with one small mistake (benchlib/mutants.py): a wrong index, a dropped row, a swapped sign, an
instruction left out. A mistake may have no effect (an address that is only prefetched, a pointer that is not read). So
a mutant that the measurer lets pass is run again on other inputs and compared element by element with float64: if one
is off by more than 1e-5 of the absolute sum of its terms, the mutant was wrong and should have been found. Mutants
count that were built and were wrong. Exit code 1 when one of them passes, or when an unchanged kernel does not.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, TimeoutError
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
from benchlib.mutants import MUTANTS, TEMPLATES, mutant_of
from sparsetvm.schedules.base import matching

from sparsetvm.core.config import Config
from sparsetvm.core.layout import PLAIN, BatchTiles, Planes, PlaneTiles, Tiled
from sparsetvm.core.pattern import PatternSummary, pattern_digest
from sparsetvm.core.target import Target, host_target
from sparsetvm.core.task import Task
from sparsetvm.core.workload import ConvGeometry, Epilogue, Workload
from sparsetvm.measure.pool import Measurer
from sparsetvm.measure.reference import input_shape, make_reference, output_shape, to_logical
from sparsetvm.rewrite.plane_geometry import conv_layouts, required_pad

_SCRIPTS = Path(__file__).parent
_CONFIGS = 3  # of each template and task: the default and random ones
_BATCH = 40
_INPUTS = 3
_JUDGE_SECONDS = 120.0
_TOLERANCE = 1e-5  # of the absolute sum of an element's terms


@dataclass
class Outcome:
    """wrong: mutants that were built and computed something else. statuses: theirs. passed: those that came through.

    harmless: mutants without effect. unbuilt: mistakes that gave no kernel. rejected_originals: unchanged kernels that
    did not come through.
    """

    wrong: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    templates: Counter[str] = field(default_factory=Counter)
    passed: list[str] = field(default_factory=list)
    harmless: int = 0
    unbuilt: int = 0
    originals: int = 0
    rejected_originals: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        return not self.passed and not self.rejected_originals

    def figures(self) -> dict[str, object]:
        return {
            "wrong": self.wrong,
            "selectable": len(self.passed),
            "statuses": dict(self.statuses),
            "templates": dict(self.templates),
            "harmless": self.harmless,
            "unbuilt": self.unbuilt,
            "originals": self.originals,
            "originals_rejected": len(self.rejected_originals),
        }


def pruned(m: int, k: int, density: float, seed: int) -> np.ndarray:
    """The largest weights of a random matrix, as magnitude pruning leaves them."""
    weight = np.random.default_rng(seed).standard_normal((m, k)).astype(np.float32)
    weight[np.abs(weight) < np.quantile(np.abs(weight), 1 - density)] = 0
    return weight


def make_task(name: str, workload: Workload, density: float) -> Task:
    """The task with random weights of that density."""
    weight = pruned(workload.m, workload.k, density, len(name))
    rows = np.count_nonzero(weight, axis=1)
    pattern = PatternSummary(
        "unstructured", (1, 1), float(rows.sum() / weight.size), float(rows.max() / rows.mean()),
        int((rows == 0).sum()), pattern_digest(weight),
    )  # fmt: skip
    bias = np.random.default_rng(1).standard_normal(workload.m).astype(np.float32)
    workload = msgspec.structs.replace(workload, pattern=pattern)
    return Task(name, workload, weight, bias if workload.epilogue.bias else None, [name])


def make_tasks(target: Target) -> list[Task]:
    """Products of many, few and one token, one so large that only some positions are compared; convolutions."""
    lanes, none = target.lanes, PatternSummary("dense", (1, 1), 1.0, 1.0, 0, "")
    relu, full = Epilogue(bias=True, activation="relu"), Epilogue(bias=True, residual=True, activation="gelu")

    def product(m: int, k: int, n: int, epilogue: Epilogue) -> Workload:
        few = n <= 4
        lin, lout = (PLAIN, PLAIN) if few else (Tiled(n, k, lanes), Tiled(n, m, lanes))
        return Workload("matmul", m, k, n, lin, lout, epilogue, none)

    def convolution(conv: ConvGeometry, m: int, batch: int, epilogue: Epilogue) -> Workload:
        k = conv.in_channels // conv.groups * conv.kernel[0] * conv.kernel[1]
        lin, lout = conv_layouts(conv, batch, m, required_pad(conv), lanes)
        n = batch * conv.out_height * conv.out_width
        return Workload("conv2d", m, k, n, lin, lout, epilogue, none, conv)

    pointwise = ConvGeometry(24, 7, 9, (1, 1))
    grid = (1, 7, 9, 0, lanes)
    tiles = Workload(
        "conv2d", 20, 24, 63, Planes(1, 24, *grid[1:]), PlaneTiles(1, 20, *grid[1:]), relu, none, pointwise
    )
    padded = ConvGeometry(6, 4, 5, (3, 3), (1, 1), (1, 1, 1, 1))
    in_lanes = Workload(
        "conv2d", 20, 54, 20 * lanes, BatchTiles(6, 4, 5, 1, lanes), BatchTiles(20, 4, 5, 1, lanes), relu, none, padded
    )
    return [
        make_task("tokens", product(48, 64, 40, relu), 0.15),
        make_task("residual", product(33, 70, 21, full), 0.2),
        make_task("large", product(64, 256, 12_000, Epilogue()), 0.3),
        make_task("one", product(48, 64, 1, relu), 0.15),
        make_task("four", product(40, 96, 4, full), 0.2),
        make_task("strided", convolution(ConvGeometry(8, 9, 9, (3, 3), (2, 2), (1, 1, 1, 1)), 16, 2, full), 0.2),
        make_task("padded", convolution(ConvGeometry(6, 8, 7, (3, 3), (1, 1), (1, 1, 1, 1)), 20, 1, relu), 0.2),
        make_task("pointwise", tiles, 0.3),
        make_task("lanes", in_lanes, 0.2),
    ]


def stress(tasks: Sequence[Task], mutants: int, seed: int = 0) -> Outcome:
    """Wrong kernels of every template that matches a task, `mutants` in all."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(_SCRIPTS), os.environ.get("PYTHONPATH", "")])
    outcome, rng, judge = Outcome(), random.Random(seed), Judge()
    target = host_target(1)
    with Measurer(
        target, templates="benchlib.mutants", repeats=1, build_timeout=20.0, run_timeout=2.0, memory_limit=2 << 30
    ) as measurer:
        for number, task in enumerate(tasks):
            wanted = mutants * (number + 1) // len(tasks)
            configs = _configs(task, target, rng)
            for result in measurer.measure(task, [mutant_of(config, 0) for config in configs]):
                outcome.originals += 1
                if not result.ok:
                    outcome.rejected_originals.append(f"{task.name}: {result.config}: {result.status} {result.message}")
            while outcome.wrong < wanted:
                batch = [mutant_of(rng.choice(configs), rng.randrange(1, MUTANTS)) for _ in range(_BATCH)]
                for result in measurer.measure(task, batch[: max(4, wanted - outcome.wrong)]):
                    _count(outcome, judge, task, target, result.config, result.status)
            print(f"{task.name}: {outcome.figures()}", file=sys.stderr, flush=True)
    judge.close()
    return outcome


def _configs(task: Task, target: Target, rng: random.Random) -> list[Config]:
    configs: list[Config] = []
    for template in matching(task.workload, target):
        space = template.space(task.workload, target)
        configs.append(template.default(task.workload, target))
        configs += [space.sample(rng) for _ in range(_CONFIGS - 1)]
    return list(dict.fromkeys(configs))


def _count(outcome: Outcome, judge: Judge, task: Task, target: Target, config: Config, status: str) -> None:
    if status in ("invalid", "compile_error", "compile_timeout"):
        outcome.unbuilt += 1
        return
    if status == "ok" and not judge.is_wrong(task, target, config):
        outcome.harmless += 1
        return
    outcome.wrong += 1
    outcome.statuses[status] += 1
    outcome.templates[config.template] += 1
    if status == "ok":
        outcome.passed.append(f"{task.name}: {config}")


class Judge:
    """Runs kernels in a process of its own, on inputs that the measurer did not use."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None

    def is_wrong(self, task: Task, target: Target, config: Config) -> bool:
        """True when a result is off anywhere, or the kernel takes the process down."""
        if self._pool is None:
            self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        try:
            return self._pool.submit(_off_anywhere, task, target, config).result(_JUDGE_SECONDS)
        except (BrokenProcessPool, TimeoutError):
            self.close()
            return True

    def close(self) -> None:
        if self._pool is not None:
            processes = list((self._pool._processes or {}).values())
            self._pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.kill()
            self._pool = None


def _off_anywhere(task: Task, target: Target, config: Config) -> bool:
    from sparsetvm.measure.candidate import Trial
    from sparsetvm.measure.compile import build

    built = build(task, config, target, TEMPLATES.__getitem__)
    workload = task.workload
    linear = msgspec.structs.replace(workload, epilogue=Epilogue())
    for seed in range(1, _INPUTS + 1):
        x = np.random.default_rng(1000 + seed).standard_normal(input_shape(workload)).astype(np.float32)
        reference = make_reference(workload, task.weight, task.bias, seed, x)
        terms = make_reference(linear, np.abs(task.weight), None, seed, np.abs(x))
        trial = Trial(built, [reference])
        trial.call()
        y = to_logical(workload.layout_out, trial.y.numpy(), output_shape(workload))
        y = y if workload.conv is None else np.moveaxis(y, 1, -1).reshape(workload.n, workload.m)
        # The sample of a large task holds the same positions in both: it depends on the seed and the sizes alone.
        limit = _TOLERANCE * (terms.expected + 1.0)
        shared, ours, theirs = np.intersect1d(reference.positions, terms.positions, return_indices=True)
        if (np.abs(y[shared].T - reference.expected[:, ours]) > limit[:, theirs]).any():
            return True
    return False


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--mutants", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    outcome = stress(make_tasks(host_target(1)), args.mutants, args.seed)
    for name, value in outcome.figures().items():
        print(f"{name:>20}  {value}")
    for problem in outcome.passed + outcome.rejected_originals:
        print(f"  {problem}")
    print("passed" if outcome.sound else "FAILED")
    if args.json:
        args.json.write_text(json.dumps({"schema": 1, "passed": outcome.sound, **outcome.figures()}, indent=2))
    return 0 if outcome.sound else 1


if __name__ == "__main__":
    sys.exit(main())
