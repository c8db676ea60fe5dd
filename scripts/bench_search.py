"""Compare searches on spaces that were measured whole: best time so far against trials, without timing anything twice.

    python scripts/bench_search.py --measurements TABLE.jsonl [--json OUT.json]
    python scripts/bench_search.py --only measure --measurements TABLE.jsonl [--task TEXT]

Every config of each task is measured once into TABLE, a tuning log (what it holds already is not measured again). Then
random search, evolutionary search without a model and the XGBoost-guided search replay it with many seeds. What is
compared, and the keys of the JSON: docs/tuning.md, docs/json.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchlib.machine import pin, use_threads

from sparsetvm.core.target import Target, parse_target
from sparsetvm.errors import SparseTvmError


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--measurements", type=Path, default=Path("search_table.jsonl"), metavar="FILE")
    parser.add_argument("--only", choices=["measure", "replay"], help="one half of the work (default: both)")
    parser.add_argument("--task", default="", metavar="TEXT", help="only tasks whose name has this text")
    parser.add_argument("--seeds", type=int, default=20, metavar="N", help="runs of each search (default: 20)")
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--json", metavar="PATH|-", help="where to write the JSON")
    return parser.parse_args()


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


def main() -> int:
    args = parse_arguments()
    try:
        target = parse_target(args.target, 1)
        if args.only != "replay":
            use_threads(1)
            pin(1)
            measure(args.measurements, args.task, target)
    except SparseTvmError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
