"""Compare searches on spaces that were measured whole: best time so far against trials, without timing anything twice.

    python scripts/bench_search.py --measurements TABLE.jsonl [--json OUT.json]
    python scripts/bench_search.py --only measure --measurements TABLE.jsonl [--task TEXT]

Every config of each task is measured once into TABLE, a tuning log (what it holds already is not measured again). Then
random search, evolutionary search without a model and the XGBoost-guided search replay it with many seeds. What is
compared, and the keys of the JSON: docs/tuning.md, docs/json.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchlib.machine import pin, use_threads

from sparsetvm.core.target import Target, parse_target
from sparsetvm.errors import SparseTvmError, UsageError


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--measurements", type=Path, default=Path("search_table.jsonl"), metavar="FILE")
    parser.add_argument("--only", choices=["measure", "replay"], help="one half of the work (default: both)")
    parser.add_argument("--task", default="", metavar="TEXT", help="only tasks whose name has this text")
    parser.add_argument("--seeds", type=positive, default=20, metavar="N", help="runs of each search (default: 20)")
    parser.add_argument("--trials", type=positive, default=128, metavar="N", help="of each run (default: 128)")
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--json", metavar="PATH|-", help="where to write the JSON")
    return parser.parse_args()


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def measure(path: Path, wanted: str, target: Target) -> None:
    from benchlib.search_table import measure_space
    from benchlib.search_tasks import search_cases

    from sparsetvm.log.journal import read_records
    from sparsetvm.measure.pool import Measurer

    known = read_records(path).records if path.exists() else []
    with Measurer(target) as measurer:
        for case in search_cases(target):
            if wanted in case.name:
                measure_space(case.task(target), target, measurer, path, known)


def replay_all(path: Path, wanted: str, seeds: int, trials: int, target: Target) -> dict[str, Any]:
    """The JSON object: all searches on all tasks of a table."""
    from benchlib.machine import describe_machine
    from benchlib.search_replay import METHODS, replay
    from benchlib.search_summary import summarize, task_row
    from benchlib.search_table import read_tables

    from sparsetvm.search.candidates import candidates_of

    tables = read_tables(path, target)
    chosen = [table for table in tables if wanted in table.name]
    if not chosen:
        raise UsageError(f"--task {wanted}: no task of {path} has that in its name", hint="leave it out for all")
    all_runs, rows = [], []
    for table in chosen:
        others = [other for other in tables if other is not table]
        runs = {
            method: [replay(table, method, seed, trials, target, others) for seed in range(seeds)] for method in METHODS
        }
        all_runs.append(runs)
        rows.append(task_row(table, candidates_of(table.task.workload, target).cardinality, runs))
        print(f"replayed {table.name}", file=sys.stderr, flush=True)
    machine = {**describe_machine(target), "measured_on": tables[0].records[0].device.model}
    return {
        "schema": 1, "machine": machine, "seeds": seeds, "trials": trials,
        "tasks": rows, "summary": summarize(rows, all_runs),
    }  # fmt: skip


def main() -> int:
    args = parse_arguments()
    use_threads(1)
    try:
        target = parse_target(args.target, 1)
        if args.only != "replay":
            pin(1)
            measure(args.measurements, args.task, target)
        if args.only == "measure":
            return 0
        result = replay_all(args.measurements, args.task, args.seeds, args.trials, target)
    except SparseTvmError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if args.json == "-":
        print(json.dumps(result, indent=2))
        return 0
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=2) + "\n")
    from benchlib.search_summary import describe

    print(describe(result["tasks"], result["summary"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
