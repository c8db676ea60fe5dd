"""Tune (if needed), compile, verify and time whole models beside ONNX Runtime.

    python scripts/bench_models.py --models DIR|FILE... [--target cpu] [--threads 1] [--budget 5m] [--json OUT.json]

Each step is a `sparsetvm` process of its own, so one model's crash costs one row. Competitors are timed in turn with
ours in one process. Keys of the JSON: docs/json.md. Exit code 1 when a model failed.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from sparsetvm.core.target import device_fingerprint, parse_target, toolchain_fingerprint

NAMES = {"ort": "onnxruntime"}  # competitor on the command line -> key of the JSON


class Failed(Exception):
    """A step of one model failed; the text is its last message."""


def run_step(folder: Path, *arguments: str) -> dict[str, Any]:
    """Run `sparsetvm ARGUMENTS` and return its JSON. Raises Failed with what it printed last."""
    out = folder / "result.json"
    out.unlink(missing_ok=True)
    command = [sys.executable, "-m", "sparsetvm", *arguments, "--json", str(out)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    result: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    if done.returncode != 0:
        last = result.get("error", {}).get("message") or done.stderr.strip()[-300:] or "no message"
        raise Failed(f"sparsetvm {arguments[0]} exited with {done.returncode}: {last}")
    return result


def bench_model(model: Path, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One row. `source` says where the kernels come from: tuned in this run, or the log's relations."""
    library = folder / f"{model.stem}.so"
    threads = ("--threads", str(args.threads))
    logs = ("--log-dir", args.log_dir) if args.log_dir else ()
    tuned = run_step(
        folder,
        "tune",
        str(model),
        "--target",
        args.target,
        *threads,
        "--budget",
        args.budget,
        *logs,
        "-o",
        str(library),
    )
    verified = run_step(folder, "verify", str(library), "--reference", str(model))
    timed = run_step(
        folder,
        "bench",
        str(library),
        "--reference",
        str(model),
        *threads,
        "--against",
        ",".join(args.against) or "none",
    )
    sources = sorted({task["source"] for task in tuned["tasks"]})
    return {
        "model": model.stem,
        "threads": timed["threads"],
        "ours_ms": timed["latency_ms"]["median"],
        "baselines_ms": {NAMES.get(name, name): latency["median"] for name, latency in timed["against"].items()},
        "speedup": {NAMES.get(name, name): factor for name, factor in timed["speedup"].items()},
        "rel_error": verified["rel_l2_error"],
        "source": "+".join(sources),
        "trials": tuned["trials_run"],
        "tune_seconds": tuned["seconds"],
    }


def summarize(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Geometric means of the speed-ups, and how many models are slower than each baseline."""
    good = [row for row in rows if "error" not in row]
    names = sorted({name for row in good for name in row["speedup"]})
    factors = {name: [row["speedup"][name] for row in good if name in row["speedup"]] for name in names}
    return {
        "geomean_speedup": {name: math.exp(sum(map(math.log, fs)) / len(fs)) for name, fs in factors.items()},
        "slower": {name: sum(factor < 1 for factor in fs) for name, fs in factors.items()},
        "failed": len(rows) - len(good),
    }


def describe_machine(target_text: str, threads: int) -> dict[str, Any]:
    target = parse_target(target_text, threads)
    device, toolchain = device_fingerprint(target), toolchain_fingerprint()
    return {
        "device": device.model, "vendor": device.vendor, "isa": device.isa, "cores": device.cores,
        "target": str(target), "sparsetvm": toolchain.sparsetvm, "tvm": toolchain.tvm,
    }  # fmt: skip


def find_models(paths: list[Path]) -> list[Path]:
    """The files, and the .onnx files of the folders."""
    return [file for path in paths for file in (sorted(path.glob("*.onnx")) if path.is_dir() else [path])]


def show(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"{row['model']:<28} {row['error']}"
    baselines = "  ".join(
        f"{name} {ms:.3f} ms ({row['speedup'].get(name, math.nan):.2f}x)" for name, ms in row["baselines_ms"].items()
    )
    return f"{row['model']:<28} {row['ours_ms']:8.3f} ms  {baselines}  error {row['rel_error']:.1e}  {row['source']}"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=Path, nargs="+", required=True, metavar="DIR|FILE")
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--budget", default="5m", help="time to tune each model; what the log knows is not tuned again")
    parser.add_argument("--against", default="ort", help="ort,dense")
    parser.add_argument("--log-dir", help="folder of the tuning log")
    parser.add_argument("--output", type=Path, help="folder to keep the compiled libraries in")
    parser.add_argument("--json", metavar="PATH|-", help="where to write the JSON")
    args = parser.parse_args()
    short = {name: key for key, name in NAMES.items()}
    args.against = [short.get(name, name) for name in args.against.split(",") if name not in ("", "none")]
    return args


def main() -> int:
    args = parse_arguments()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.output or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for model in find_models(args.models):
            try:
                rows.append(bench_model(model, args, folder))
            except Failed as error:
                rows.append({"model": model.stem, "error": str(error)})
            print(show(rows[-1]), file=sys.stderr, flush=True)
    machine = describe_machine(args.target, args.threads)
    text = json.dumps({"schema": 1, "machine": machine, "rows": rows, "summary": summarize(rows)}, indent=2)
    if args.json and args.json != "-":
        Path(args.json).write_text(text + "\n")
    else:
        print(text)
    return 1 if any("error" in row for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
