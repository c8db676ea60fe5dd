"""Tune (if needed), compile, verify and time whole models beside the runtimes that people use.

    python scripts/bench_models.py --models DIR|FILE... [--threads 1] [--budget 5m|0] [--against ort,openvino]
        [--deepsparse-python ENV/bin/python] [--json OUT.json]

    python scripts/bench_models.py --models DIR|FILE... --target cuda [--allow-tf32] [--allow-fp16]
        [--against torch,dense]

Each step is a `sparsetvm` process of its own, so one model's crash costs one row. Competitors are timed in turn with
ours in one process; DeepSparse, which wants an environment of its own, right after them. `openvino` gives two columns:
float32, and the precision that OpenVINO chooses. On a GPU the competitor is PyTorch in CUDA graphs, in three columns:
fp32, tf32 and fp16. Keys of the JSON: docs/json.md. Exit code 1 when a model failed.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchlib.machine import describe_machine, pin
from benchlib.model_row import NAMES, Failed, ModelBench
from benchlib.summary import summarize_models

from sparsetvm.core.target import parse_target, version_of
from sparsetvm.errors import EnvironmentProblem, SparseTvmError, UsageError, did_you_mean

Built = Callable[[], dict[str, Any]]
_COLUMNS = {"ort": ["ort"], "openvino": ["openvino-f32", "openvino"], "dense": ["dense"]}
_GPU_COLUMNS = {"torch": ["torch"], "dense": ["dense"]}


def find_models(paths: list[Path]) -> list[Path]:
    """The files, and the .onnx files of the folders. Raises UsageError when there are none."""
    found = [file for path in paths for file in (sorted(path.glob("*.onnx")) if path.is_dir() else [path])]
    if not found:
        raise UsageError("no .onnx files in --models", hint="python scripts/make_models.py models makes some")
    return found


def competitors(text: str, columns: Mapping[str, list[str]] = _COLUMNS) -> list[str]:
    """ "ort,openvino" -> what `sparsetvm bench --against` takes. columns: those of the target's kind of device.

    Raises UsageError for an unknown competitor, EnvironmentProblem for one that is not installed.
    """
    short = {key: name for name, key in NAMES.items()}
    names = [short.get(name, name) for name in text.split(",") if name not in ("", "none")]
    for name in names:
        if name not in columns:
            raise UsageError(
                f"--against {name}: unknown competitor{did_you_mean(name, columns)}",
                hint=f"known: {', '.join(columns)}, none; DeepSparse with --deepsparse-python",
            )
        package = NAMES.get(name, name)
        if name != "dense" and version_of(package) == "missing":
            raise EnvironmentProblem(
                f"{package} is not installed", hint=f"pip install {package}, or leave it out of --against"
            )
    return [column for name in names for column in columns[name]]


def show(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"{row['model']:<28} {row['error']}"
    baselines = "  ".join(
        f"{name} {ms:.3f} ms ({row['speedup'].get(name, math.nan):.2f}x)" for name, ms in row["baselines_ms"].items()
    )
    lines = [f"{row['model']:<28} {row['ours_ms']:8.3f} ms  {baselines}  error {row['rel_error']:.1e}  {row['source']}"]
    return "\n  note: ".join(lines + row["notes"])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=Path, nargs="+", required=True, metavar="DIR|FILE")
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--allow-tf32", action="store_true", help="on a GPU, let our dense kernels use tensor cores")
    parser.add_argument("--allow-fp16", action="store_true", help="on a GPU, let ours multiply in float16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--budget", default="5m", help="time to tune each model, beside what the log knows; 0: compile only"
    )
    parser.add_argument(
        "--against", help="ort, openvino, dense, or none; on a GPU torch, dense or none (default: ort, or torch)"
    )
    parser.add_argument(
        "--deepsparse-python", type=Path, metavar="PATH", help="interpreter of an environment with deepsparse 1.8"
    )
    parser.add_argument("--log-dir", help="folder of the tuning log")
    parser.add_argument("--records", action="append", default=[], help="more tuning logs to read")
    parser.add_argument("--output", type=Path, help="folder to keep the compiled libraries in")
    parser.add_argument(
        "--build-jobs", type=int, default=1, help="libraries to compile at once before any is timed, with --budget 0"
    )
    parser.add_argument("--json", metavar="PATH|-", help="where to write the JSON")
    return parser.parse_args()


def build_all(runner: ModelBench, models: list[Path], folder: Path, jobs: int) -> Iterator[Built]:
    """For each model what gives the result of `ModelBench.build`, or raises what that raised.

    Several jobs build all models before the first is timed; one builds each when it is its turn.
    """
    if jobs == 1:
        yield from (functools.partial(runner.build, model, folder) for model in models)
        return
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(runner.build, model, folder) for model in models]
    yield from (future.result for future in futures)


def bench(args: argparse.Namespace) -> dict[str, Any]:
    """The JSON object."""
    if args.build_jobs < 1 or (args.build_jobs > 1 and args.budget != "0"):
        raise UsageError(
            f"--build-jobs {args.build_jobs} with --budget {args.budget}: tuning one model disturbs another",
            hint="build one at a time, or give --budget 0",
        )
    target = parse_target(args.target, args.threads, args.allow_tf32, args.allow_fp16)
    models = find_models(args.models)
    gpu = target.kind == "cuda"
    against = args.against or ("torch" if gpu else "ort")
    names = competitors(against, _GPU_COLUMNS if gpu else _COLUMNS)
    runner = ModelBench(
        str(target) if gpu else args.target, args.threads, args.budget, names, args.log_dir, args.records,
        args.deepsparse_python,
    )  # fmt: skip
    if not gpu:
        pin(args.threads)
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {"schema": 1, "machine": describe_machine(target), "rows": rows, "summary": {}}
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.output or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for model, built in zip(models, build_all(runner, models, folder, args.build_jobs), strict=True):
            try:
                rows.append(runner.row(model, folder, built()))
            except Failed as error:
                rows.append({"model": model.stem, "error": str(error)})
            print(show(rows[-1]), file=sys.stderr, flush=True)
            result["summary"] = summarize_models(rows)
            if args.json and args.json != "-":
                Path(args.json).write_text(json.dumps(result, indent=2) + "\n")
    return result


def main() -> int:
    args = parse_arguments()
    try:
        result = bench(args)
    except SparseTvmError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if not args.json or args.json == "-":
        print(json.dumps(result, indent=2))
    return 1 if result["summary"]["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
