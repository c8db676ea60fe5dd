"""Run ONNX's backend tests of the operators in checklib/operators.py and write the table of docs/conformance.md.

    python scripts/conformance.py [--only WORD] [--light] [--jobs N] [--json OUT.json] [--write]

Each node test runs as ONNX has it, and once more with constant, pruned weights where it has any; every layer gets a
template that skips zeros. Exit code 1 when a test fails that checklib/known_failures.json does not list, or one passes
that it lists: the list only shrinks. --light adds ONNX's whole image networks (minutes each). --write replaces the
table in docs/conformance.md (not with --only).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path

import onnx
from checklib.isolated import call_isolated
from checklib.node_tests import LIGHT_NAMES, MODEL, MODES, all_cases, run_named
from checklib.operators import GROUP_OF, OPERATORS

KNOWN = Path(__file__).parent / "checklib" / "known_failures.json"
DOCUMENT = Path(__file__).parents[1] / "docs" / "conformance.md"
_MARK = "<!-- The rest of this file is written by scripts/conformance.py --write -->\n"
_TIMEOUT = 600.0
_EXPANDED = "functions written out"


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", default="", help="tests with this word in their names")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--light", action="store_true")
    args = parser.parse_args()
    known: dict[str, str] = json.loads(KNOWN.read_text())
    cases = all_cases()
    items = [(name, mode) for mode in MODES for name in sorted(cases) if args.only in name]
    items = [item for item in items if args.light or not item[0].startswith(LIGHT_NAMES)]
    begun = time.monotonic()
    errors: dict[tuple[str, str], str] = {}
    counts: Counter[tuple[str, str, str]] = Counter()
    for done, outcome in enumerate(call_isolated(run_named, items, args.jobs, _TIMEOUT), 1):
        name, mode = outcome.item
        status = "failed" if outcome.error else outcome.result
        counts[_group(cases[name].operator), mode, status] += 1
        if outcome.error:
            errors[name, mode] = outcome.error.strip().splitlines()[-1]
            if name not in known:
                print(f"{name} ({mode}): {outcome.error}", file=sys.stderr, flush=True)
        if done % 200 == 0:
            print(f"{done} of {len(items)}, {len(errors)} failed", file=sys.stderr, flush=True)
    failed = {name for name, _ in errors}
    new = sorted(failed - known.keys())
    mended = sorted(name for name in known.keys() - failed if name in cases and args.only in name)
    table = _table(counts, {name: reason for name, reason in known.items() if name in failed})
    print(table)
    print(f"{time.monotonic() - begun:.0f} s; not listed: {new}; listed, but they pass: {mended}")
    if args.write and not args.only:
        head = DOCUMENT.read_text().split(_MARK)[0]
        DOCUMENT.write_text(head + _MARK + "\n" + table)
    if args.json:
        figures = {"|".join(key): count for key, count in sorted(counts.items())}
        failures = {"|".join(key): error for key, error in sorted(errors.items())}
        args.json.write_text(json.dumps({"schema": 1, "counts": figures, "failures": failures}, indent=2))
    return 1 if new or mended else 0


def _group(operator: str) -> str:
    return operator if operator == MODEL else GROUP_OF.get(operator, _EXPANDED)


def _table(counts: Counter[tuple[str, str, str]], known: dict[str, str]) -> str:
    lines = [
        f"ONNX {onnx.__version__}.",
        "",
        "| group | operators | tests | pass | with constant weights | pass |",
        "|---|---|---:|---:|---:|---:|",
    ]
    total: Counter[str] = Counter()
    for group in [*OPERATORS, _EXPANDED, MODEL]:
        cells: Counter[str] = Counter()
        for mode in MODES:
            passed, failed = counts[group, mode, "passed"], counts[group, mode, "failed"]
            cells[f"{mode} tests"], cells[f"{mode} passed"] = passed + failed, passed
        total.update(cells)
        lines.append(_row(group, ", ".join(sorted(OPERATORS.get(group, "").split())), cells))
    lines.append(_row("all", "", total))
    share = total["given passed"] / max(total["given tests"], 1)
    lines += ["", f"{share:.1%} of the tests pass. Those that do not:", "", "| test | why |", "|---|---|"]
    lines += [f"| `{name}` | {reason} |" for name, reason in sorted(known.items())]
    return "\n".join(lines) + "\n"


def _row(group: str, operators: str, cells: Counter[str]) -> str:
    figures = [cells[f"{mode} {what}"] for mode in MODES for what in ("tests", "passed")]
    return f"| {group} | {operators} | {' | '.join(map(str, figures))} |"


if __name__ == "__main__":
    sys.exit(main())
