"""Compare searches on spaces that were measured whole: best time so far against trials, without timing anything twice.

    python scripts/bench_search.py --measurements TABLE.jsonl [--tasks held-out] [--json OUT.json]
    python scripts/bench_search.py --only measure --measurements TABLE.jsonl [--measure-jobs N] [--measure-seconds S]
    python scripts/bench_search.py --only replay --measurements TABLE.jsonl [--json OUT.json]

Every config of each task is measured once into TABLE, a tuning log (what it holds already is not measured again). Then
random search, evolutionary search without a model and the XGBoost-guided search replay it with many seeds, here or on
another machine. The search was tuned on the default set of tasks and never saw the set "held-out". What is compared,
and the keys of the JSON: docs/tuning.md, docs/json.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchlib.machine import use_threads
from benchlib.search_tasks import LARGEST, TASK_SETS, TaskSet, search_cases

from sparsetvm.core.target import Target, parse_target
from sparsetvm.errors import SparseTvmError, UsageError


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--measurements", type=Path, default=Path("search_table.jsonl"), metavar="FILE")
    parser.add_argument("--only", choices=["measure", "replay"], help="one half of the work (default: both)")
    parser.add_argument("--tasks", choices=TASK_SETS, default=TASK_SETS[0], help="which set of tasks (default: tuned)")
    parser.add_argument("--task", default="", metavar="TEXT", help="only tasks whose name has this text")
    parser.add_argument(
        "--configs", type=positive, default=LARGEST, metavar="N",
        help=f"to measure of a task's largest space; an 18th of each other (default: {LARGEST})",
    )  # fmt: skip
    parser.add_argument(
        "--measure-jobs", type=positive, default=1, metavar="N", help="tasks at a time, a core for each (default: 1)"
    )
    parser.add_argument(
        "--measure-seconds",
        type=positive,
        metavar="S",
        help="for all tasks; then smaller spaces are kept (default: no limit)",
    )
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


def replay_all(path: Path, tasks: TaskSet, wanted: str, seeds: int, trials: int, target: Target) -> dict[str, Any]:
    """The JSON object: all searches on all tasks of a table. target: of this machine, for tables that say none."""
    from benchlib.machine import describe_machine
    from benchlib.search_replay import METHODS, replay
    from benchlib.search_summary import summarize, task_row
    from benchlib.search_table import read_tables

    from sparsetvm.search.candidates import candidates_of

    found = read_tables(path, tasks, target)
    for name in found.unfinished:
        print(f"left out: no space of {name} was measured whole", file=sys.stderr)
    chosen = [table for table in found.tables if wanted in table.name]
    if not chosen:
        raise UsageError(f"--task {wanted}: no task of {path} has that in its name", hint="leave it out for all")
    all_runs, rows = [], []
    for table in chosen:
        runs = {
            method: [replay(table, method, seed, trials, found.tables) for seed in range(seeds)] for method in METHODS
        }
        all_runs.append(runs)
        rows.append(task_row(table, candidates_of(table.task.workload, table.target).cardinality, runs))
        print(f"replayed {table.name}", file=sys.stderr, flush=True)
    measured = found.tables[0]
    return {
        "schema": 1, "machine": {**describe_machine(measured.target), "measured_on": measured.device.model},
        "task_set": tasks, "tasks_of_set": len(search_cases(tasks)), "unfinished": found.unfinished,
        "seeds": seeds, "trials": trials, "tasks": rows, "summary": summarize(rows, all_runs),
    }  # fmt: skip


def main() -> int:
    args = parse_arguments()
    use_threads(1)
    try:
        target = parse_target(args.target, 1)
        if args.only != "replay":
            from benchlib.search_measure import Plan, measure_all

            plan = Plan(args.measurements, args.tasks, target, args.configs, args.measure_jobs, args.measure_seconds)
            for name in measure_all(plan, args.task):
                print(f"the time was up before all configs of {name} were measured", file=sys.stderr)
        if args.only == "measure":
            return 0
        result = replay_all(args.measurements, args.tasks, args.task, args.seeds, args.trials, target)
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
