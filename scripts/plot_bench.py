"""Figures and tables from the JSON of bench_kernels.py and bench_models.py.

    python scripts/plot_bench.py KERNELS.json MODELS.json --figures docs/figures --markdown docs/benchmarks.md

--figures FOLDER writes .svg files (needs matplotlib: pip install -e '.[bench]'); --markdown DOCUMENT replaces
the tables between its markers, with the figures above them. Several files of one kind give the rows of all; the
machine is that of the last.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from benchlib.markdown import fill_document, kernel_sections, model_sections, thread_sections

from sparsetvm.errors import SparseTvmError, UsageError


def read_results(paths: list[Path]) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """(of kernels, of models), None for a kind that no file has. Raises UsageError for other files."""
    merged: dict[str, dict[str, Any]] = {}
    for path in paths:
        try:
            result = json.loads(path.read_text())
            rows, machine = result["rows"], result["machine"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"'{path}' is no result of a benchmark: {error}") from error
        kind = "models" if any("model" in row for row in rows) else "kernels"
        earlier = merged[kind]["rows"] if kind in merged else []
        merged[kind] = {"rows": [*earlier, *rows], "machine": machine}
    return merged.get("kernels"), merged.get("models")


def tables(kernels: dict[str, Any] | None, models: dict[str, Any] | None) -> dict[str, str]:
    """Section -> table. Networks that were timed with several numbers of threads are one table of their own."""
    sections = kernel_sections(kernels) if kernels else {}
    if models:
        sections |= thread_sections(models) or model_sections(models)
    return sections


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+", metavar="RESULT.json")
    parser.add_argument("--figures", type=Path, metavar="FOLDER")
    parser.add_argument("--markdown", type=Path, metavar="DOCUMENT")
    parser.add_argument("--machine", default="", metavar="NAME", help="fill the sections 'SUITE NAME'")
    args = parser.parse_args()
    try:
        kernels, models = read_results(args.results)
        figures = []
        if args.figures is not None:
            from benchlib.figures import draw

            figures = draw(kernels, models, args.figures)
        if args.markdown is not None:
            sections = tables(kernels, models)
            for path in figures:
                link = Path(os.path.relpath(path, args.markdown.parent)).as_posix()
                sections[path.stem] = f"![{path.stem}]({link})\n\n{sections[path.stem]}"
            suffix = f" {args.machine}" if args.machine else ""
            fill_document(args.markdown, {name + suffix: content for name, content in sections.items()})
        print(*figures, *([args.markdown] if args.markdown else []), sep="\n")
    except SparseTvmError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
