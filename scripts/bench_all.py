"""All benchmarks that the tables of docs/gpu.md come from, spread over the GPUs of this machine; or tune models there.

    python scripts/bench_all.py --models DIR --out OUT [--seconds 540] [--only grid*,blocks*] [--budget 0]
    python scripts/bench_all.py --tune --models DIR --out OUT [--seconds 540]

Each benchmark is a process of its own on a GPU of its own, with a time limit; it writes OUT/NAME.json and OUT/NAME.log.
Run again, the same command does what has failed or had no time (--again: everything). At the end there is a table, also
in OUT/summary.txt. With --tune nothing is benchmarked: each model of the folder is tuned for an equal share of the
time, its records are in OUT/logs/MODEL, and what is printed last ships them. DIR is what make_models.py writes; without
--models networks are left out. Exit code 1 when something failed or had no time, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchlib.jobs import Job, Jobs, Outcome
from benchlib.summary import geomean

from sparsetvm.core.gpu import count_gpus
from sparsetvm.errors import SparseTvmError, UsageError

_SCRIPTS = Path(__file__).parent
_SLACK = 2.5  # a limit over what is expected
_START_UP = 25.0  # seconds of a tune beside its budget
_FEW_ZEROS = "bench_sparse_sparse"
# Name -> seconds that are expected (untuned; not measured yet), script and options.
_KERNELS: dict[str, tuple[float, str, tuple[str, ...]]] = {
    "grid-few": (80, "bench_kernels", ("--suite", "grid", "--n", "1,8")),
    "grid-90": (60, "bench_kernels", ("--suite", "grid", "--n", "32,128,1024", "--sparsity", "0.9")),
    "grid-95": (60, "bench_kernels", ("--suite", "grid", "--n", "32,128,1024", "--sparsity", "0.95")),
    "blocks": (75, "bench_kernels", ("--suite", "structured", "--case", "32x32")),
    "blocks-2:4": (75, "bench_kernels", ("--suite", "structured", "--case", "2:4,64x64")),
    "sparsert": (80, "bench_kernels", ("--suite", "sparsert")),
    "conv": (45, "bench_kernels", ("--suite", "conv", "--limit", "8")),
    "patterns": (45, "bench_kernels", ("--suite", "patterns", "--limit", "8")),
    "sparse-sparse": (100, _FEW_ZEROS, ("--patterns", "unstructured,block 16x1")),
    "sparse-sparse-8192": (60, _FEW_ZEROS, ("--sizes", "8192", "--columns", "1", "--patterns", "unstructured")),
    "speech": (60, "bench_speech_commands", ()),
}
_LENT = "real_mobilenet_v1"  # the model whose weights the suite sparsert takes
# Networks of the tables; then comes the fleet, which needs all GPUs, then other networks.
_NETWORKS = ("bert4l_s90_b1", "mlp_s95_b1", "mlp_s95_b64", _LENT, "resnet50_s90_b1", "resnet50_s95_b1")
_MODEL_SECONDS, _FLEET_SECONDS = 35.0, 60.0


def benchmarks(models: Sequence[Path], out: Path, devices: int, budget: float) -> list[Job]:
    """Jobs of all benchmarks. budget: seconds of tuning for each layer, and ten times that for each network."""
    found = []
    for name, (seconds, script, given) in _KERNELS.items():
        options = [*given, "--target", "cuda"]
        search = 20 * budget if script == "bench_kernels" else 0.0
        if search:
            options += ["--budget", f"{budget:g}", "--log-dir", str(out / "logs" / name)]
        if name == "sparsert":
            options += [part for path in models if path.stem == _LENT for part in ("--model", str(path))]
        found.append(_job(out, name, seconds + search, script, options))
    for path in models:
        name, search = f"model-{path.stem}", 10 * budget
        options = ["--models", str(path), "--target", "cuda", "--budget", f"{search:g}s" if search else "0"]
        options += ["--log-dir", str(out / "logs" / name)]
        rank = 0 if path.stem in _NETWORKS else 2
        found.append(_job(out, name, _MODEL_SECONDS + search, "bench_models", options, rank=rank))
    if devices > 1:
        targets = ",".join(f"cuda:{number}" for number in range(devices))
        options = ["--targets", targets, "--seconds", f"{_FLEET_SECONDS:g}"]
        found.append(_job(out, "fleet", 2 * _FLEET_SECONDS + 40, "bench_fleet", options, whole=True, rank=1))
    return found


def tunes(models: Sequence[Path], out: Path, devices: int, seconds: float) -> list[Job]:
    """Jobs that tune each model for an equal share of `seconds` on all devices."""
    if not models:
        raise UsageError("--tune needs models", hint="give a folder of .onnx files with --models")
    rounds = -(-len(models) // devices)
    budget = seconds / rounds - _START_UP
    if budget < 5:
        raise UsageError(
            f"{seconds:.0f} s are too few for {len(models)} models on {devices} GPUs",
            hint=f"--seconds {rounds * (_START_UP + 30):.0f} gives each 30 s",
        )
    options = ("--target", "cuda", "--budget", f"{budget:.0f}s")
    options = (*options, "--jobs", str(max(2, len(os.sched_getaffinity(0)) // devices)))
    found = []
    for path in models:
        name = f"tune-{path.stem}"
        files = ("--log-dir", str(out / "logs" / path.stem), "--json", str(out / f"{name}.json"))
        command = (sys.executable, "-m", "sparsetvm", "tune", str(path), *options, *files)
        found.append(Job(name, command, budget, budget + _SLACK * _START_UP))
    return found


def _job(
    out: Path, name: str, seconds: float, script: str, options: Sequence[str], whole: bool = False, rank: int = 0
) -> Job:
    command = (sys.executable, str(_SCRIPTS / f"{script}.py"), *options, "--json", str(out / f"{name}.json"))
    return Job(name, command, seconds, _SLACK * seconds, whole, rank)


def headline(result: dict[str, Any] | None) -> str:
    """What one line can say of a result of any of the benchmarks."""
    if result is None:
        return ""
    rows = result.get("rows", [])
    if "tasks" in result:
        gains = [task["speedup"] for task in result["tasks"] if task.get("speedup")]
        return f"{result.get('trials_run', 0)} trials, {len(gains)} tasks, {geomean(gains):.2f}x dense"
    if isinstance(rows, dict):
        return ", ".join(f"{name} {row['us']:.1f} us" for name, row in rows.items())
    bad = sum("error" in row for row in rows)
    good = [row for row in rows if "error" not in row]
    if "speedup" in result:
        text = f"{result['speedup']:.2f}x one worker"
    elif any("ours_ms" in row for row in good):
        text = ", ".join(
            f"{row['ours_ms']:.3f} ms {' '.join(f'{name} {value:.2f}x' for name, value in row['speedup'].items())}"
            for row in good
        )
    else:
        gains = [row.get("speedup", row.get("over_dense")) for row in good]
        text = f"{len(good)} rows, {geomean([gain for gain in gains if gain and gain > 0]):.2f}x best dense"
    return f"{text}, {bad} FAILED" if bad else text


def table(jobs: Sequence[Job], outcomes: dict[str, Outcome], runner: Jobs) -> str:
    lines = []
    for job in jobs:
        outcome = outcomes[job.name]
        lines.append(f"{job.name:<24} {outcome.state:<11} {outcome.seconds:5.0f} s  {headline(runner.result(job))}")
    wrong = [job.name for job in jobs if outcomes[job.name].state != "ok"]
    return "\n".join([*lines, f"not ok: {', '.join(wrong)}" if wrong else "all ok"])


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=Path, metavar="DIR", help="networks to time or tune")
    parser.add_argument("--out", type=Path, required=True, metavar="OUT", help="folder of results and logs")
    parser.add_argument("--seconds", type=float, default=540.0, help="for all; what does not fit is left for later")
    parser.add_argument("--budget", type=float, default=0.0, metavar="SECONDS", help="of search a layer")
    parser.add_argument("--only", default="*", metavar="NAME*,...", help="only these, e.g. grid*,model-*")
    parser.add_argument("--again", action="store_true", help="also what has ended well before")
    parser.add_argument("--tune", action="store_true", help="tune the models instead, and keep their records")
    parser.add_argument("--devices", metavar="N,...", help="GPUs to use (default: all that this process may use)")
    parser.add_argument("--list", action="store_true", help="print the commands and run nothing")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse_arguments(arguments)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        models = sorted(args.models.glob("*.onnx")) if args.models else []
        if args.models and not models:
            raise UsageError(f"no .onnx files in '{args.models}'", hint="python scripts/make_models.py DIR makes some")
        devices = args.devices.split(",") if args.devices else visible_devices()
        if args.tune:
            jobs = tunes(models, args.out, len(devices), args.seconds)
        else:
            jobs = benchmarks(models, args.out, len(devices), args.budget)
        chosen = [job for job in jobs if any(fnmatch.fnmatch(job.name, part) for part in args.only.split(","))]
        if not chosen:
            raise UsageError(f"--only {args.only}: no such job", hint=", ".join(job.name for job in jobs))
    except SparseTvmError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if args.list:
        print("\n".join(f"{job.name}: {' '.join(job.command)}" for job in chosen))
        return 0
    runner = Jobs(args.out, devices, lambda line: print(line, file=sys.stderr, flush=True))
    outcomes = runner.run(chosen, args.seconds, again=args.again)
    summary = table(chosen, outcomes, runner)
    (args.out / "summary.txt").write_text(summary + "\n")
    print(summary)
    if args.tune:
        print(f"to ship the records: python scripts/ship_records.py {args.out}/logs/*/*.jsonl --keep")
    states = {outcome.state for outcome in outcomes.values()}
    return 130 if "interrupted" in states else 0 if states == {"ok"} else 1


def visible_devices() -> list[str]:
    """Names of the GPUs that this process may use. Raises EnvironmentProblem when there is none."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(number) for number in range(count_gpus())]


if __name__ == "__main__":
    sys.exit(main())
