"""How much faster several workers tune than one: the same tune on one device and on all of them.

    python scripts/bench_fleet.py --targets cuda:0,cuda:1 [--seconds 60] [--jobs 16] [--json OUT.json]

Starts a tracker and workers on this machine, tunes a set of pruned products for that many seconds on the first device,
then on all, and prints trials per second of both, without those of the first round, whose kernels are built while no
device has anything to measure. No model file is needed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
from checklib.fleet_field import Field, field

from sparsetvm.analysis.patterns import summarize
from sparsetvm.core.layout import Tiled
from sparsetvm.core.record import Record
from sparsetvm.core.target import Target
from sparsetvm.core.task import Task
from sparsetvm.core.workload import Epilogue, Workload
from sparsetvm.log.journal import append, journal_path
from sparsetvm.log.lookup import RecordIndex
from sparsetvm.measure.fleet import Fleet
from sparsetvm.rewrite.assign_layouts import token_lanes
from sparsetvm.search.budget import TuneOptions
from sparsetvm.search.tuner import tune_tasks

# Rows, columns, tokens, sparsity.
_CASES = ((768, 768, 128, 0.9), (3072, 768, 128, 0.9), (768, 3072, 128, 0.95), (1024, 1024, 512, 0.9))


def tasks_for(target: Target) -> list[Task]:
    """Pruned products with random patterns."""
    rng = np.random.default_rng(0)
    found = []
    for m, k, n, sparsity in _CASES:
        weight = rng.standard_normal((m, k)).astype(np.float32)
        weight[rng.random(weight.shape) < sparsity] = 0
        lanes = token_lanes(n, target)
        workload = Workload(
            "matmul", m, k, n, Tiled(n, k, lanes), Tiled(n, m, lanes), Epilogue(), summarize(weight),
            threads=target.threads,
        )  # fmt: skip
        found.append(Task(f"{m}x{k}", workload, weight, np.zeros(m, np.float32), [f"{m}x{k}"]))
    return found


def start_worker(there: Field, name: str, key: str, target: str) -> None:
    options = ["--tracker", there.address, "--key", key, "--target", target, "--port", str(there.worker_port())]
    there.start(name, ["-m", "sparsetvm", "worker", *options])


def tune(there: Field, key: str, workers: int, seconds: float, jobs: int, folder: Path) -> dict[str, Any]:
    """Trials per second of a tune of `seconds` on the workers of a key, all of which are waited for.

    Exits when the time was too short for two rounds.
    """
    fleet = Fleet(there.address, key, threads=1, patience=120.0)
    while fleet.tracker.count() < workers:
        time.sleep(0.2)
    tasks, index, by_status = tasks_for(fleet.target), RecordIndex.open(folder, []), {}  # type: ignore[var-annotated]
    options = TuneOptions("default", None, seconds, None, False, uuid.uuid4().hex[:12])
    journal = journal_path(folder, fleet.device)

    kept: list[tuple[float, int]] = []  # when, how many

    def keep(records: list[Record]) -> None:
        append(journal, *records)
        kept.append((time.monotonic(), len(records)))

    with fleet.measurer(jobs=jobs) as measurer:
        measurer.measure(tasks[0], [])  # start the builders
        outcomes = tune_tasks(
            tasks, fleet.target, options, index, keep, measurer, lambda event: None, device=fleet.device
        )
    for outcome in outcomes:
        for status, count in outcome.statuses.items():
            by_status[status] = by_status.get(status, 0) + count
    # The first round ends with the batch that gives each task its first trials.
    first = next((at for at in range(len(kept)) if sum(count for _, count in kept[: at + 1]) >= 2 * len(tasks)), None)
    if first is None or first + 1 == len(kept):
        sys.exit(f"{seconds:.0f} s were too few for a second round: give more --seconds")
    trials, took = sum(count for _, count in kept[first + 1 :]), kept[-1][0] - kept[first][0]
    return {
        "workers": workers, "device": fleet.device.model, "trials": trials, "seconds": took,
        "trials_per_second": trials / took, "statuses": by_status,
        "best_us": {outcome.task.name: outcome.best_us for outcome in outcomes},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", required=True, help="one for each worker")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--jobs", type=int, default=max(2, (os.cpu_count() or 2) - 4))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that workers end too
    targets = args.targets.split(",")
    with field() as there, tempfile.TemporaryDirectory(prefix="bench-fleet-") as folder:
        start_worker(there, "one", "one", targets[0])
        for number, target in enumerate(targets):
            start_worker(there, f"all {number}", "all", target)
        rows = []
        for key, workers in (("one", 1), ("all", len(targets))):
            place = Path(folder, key)
            place.mkdir()
            rows.append(tune(there, key, workers, args.seconds, args.jobs, place))
            print(json.dumps(rows[-1]), flush=True)
    speedup = rows[1]["trials_per_second"] / rows[0]["trials_per_second"]
    print(f"{len(targets)} workers: {speedup:.2f} times the trials per second of one")
    if args.json:
        args.json.write_text(json.dumps({"schema": 1, "rows": rows, "speedup": speedup}, indent=2))


if __name__ == "__main__":
    main()
