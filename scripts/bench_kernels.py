"""Time single layers beside the dense and sparse products that ship: speed-up by shape, sparsity and pattern.

    python scripts/bench_kernels.py --suite anchors [--threads 1] [--budget 30] [--json OUT.json]
    python scripts/bench_kernels.py --suite dlmc --patterns DIR --limit 12
    python scripts/bench_kernels.py --target cuda [--allow-tf32] [--allow-fp16] --suite grid,sparsert [--budget 30]
    python scripts/bench_kernels.py --target cuda --suite structured [--budget 30] [--json OUT.json]

Each row is one layer. Its config comes from the tuning log; with --budget SECONDS, a layer that no record settles is
tuned first and its records are kept, else it gets the default config. All competitors are checked against a float64
reference, then timed in turn in one process. Suites and keys of the JSON: docs/benchmarks.md, docs/json.md. Exit code
1 when a row failed, 130 after Ctrl-C (the rows so far are written).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchlib.block_csr import BLOCK_COMPETITORS, TWO_FOUR
from benchlib.case import Case
from benchlib.machine import describe_machine, pin, use_threads

from sparsetvm.core.target import Target, parse_target, version_of
from sparsetvm.errors import EnvironmentProblem, SparseTvmError, UsageError, did_you_mean

_AGAINST = (
    "numpy, ort, openvino, scipy, or none; on a GPU torch-fp32, torch-tf32, torch-fp16, cusparse, torch-2:4, "
    "triton-block, triton-block-tf32 or none (default: all that are installed)"
)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--suite",
        action="append",
        metavar="NAME,...",
        help="anchors, conv, dlmc, grid, patterns, sparsert, structured or FILE.npz; repeatable (default: anchors)",
    )
    parser.add_argument("--patterns", type=Path, metavar="DIR", help="folder of pattern files, for the suite dlmc")
    parser.add_argument("--model", type=Path, metavar="FILE", help="weights of the suite sparsert's 1x1 layers, .onnx")
    parser.add_argument("--n", type=int_list, default=[], metavar="N,...", help="only these columns of X")
    parser.add_argument("--sparsity", type=float_list, default=[], metavar="S,...", help="only these, e.g. 0.9,0.95")
    parser.add_argument(
        "--case", type=texts, default=[], metavar="TEXT,...", help="only cases whose names contain one, e.g. 32x32,2:4"
    )
    parser.add_argument(
        "--limit",
        "--sample",
        type=positive,
        metavar="N",
        help="at most N cases of each suite (or pattern file), evenly spread",
    )
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--allow-tf32", action="store_true", help="on a GPU, let our dense kernels use tensor cores")
    parser.add_argument("--allow-fp16", action="store_true", help="on a GPU, let ours multiply in float16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--budget", type=float, default=0.0, metavar="SECONDS", help="of search for each layer")
    parser.add_argument("--against", metavar="NAME,...", help=_AGAINST)
    parser.add_argument("--log-dir", type=Path, help="folder of the tuning log")
    parser.add_argument("--records", type=Path, action="append", default=[], help="more tuning logs to read")
    parser.add_argument("--json", metavar="PATH|-", help="where to write the JSON")
    args = parser.parse_args()
    args.suite = [name for given in args.suite or ["anchors"] for name in given.split(",") if name]
    return args


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def int_list(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


def texts(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def float_list(text: str) -> list[float]:
    return [float(part) for part in text.split(",") if part]


def show(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"{row['case']:<44.44} {row['error']}"
    random = f"  vs random {row['ratio_to_random']:.2f}" if "ratio_to_random" in row else ""
    return (
        f"{row['case']:<44.44} {row['ours_us']:9.1f} us  {row['speedup']:5.2f}x of {row['best_dense']}"
        f" ({row['best_dense_us']:.1f})  peak {row['peak_fraction']:.2f}{random}  {row['template']} {row['source']}"
    )


def open_cpu(args: argparse.Namespace, names: list[str], target: Target) -> tuple[Any, float]:
    """What times a case, and the peak of a core in GFLOP/s."""
    from benchlib.configs import ConfigSource
    from benchlib.kernel_row import KernelBench
    from benchlib.peak import measured_peak

    from sparsetvm.runtime.threads import set_threads

    usable = set_threads(target.threads)
    if usable < target.threads:
        raise UsageError(f"--threads {target.threads}: this process may use {usable} cores", hint="allow it more cores")
    peak = measured_peak(target)
    return KernelBench(target, ConfigSource(target, args.budget, args.log_dir, args.records), names, peak), peak


def open_gpu(args: argparse.Namespace, names: list[str], target: Target, cases: Sequence[Case]) -> tuple[Any, float]:
    """What times a case, and the peak of the GPU in GFLOP/s at its highest clock."""
    from benchlib.configs import ConfigSource
    from benchlib.gpu_row import GpuKernelBench, compile_ahead, peak_gflops

    from sparsetvm.core.gpu import query_gpu

    if not target.host:
        raise UsageError(f"target '{target}' cannot be measured", hint="use --target cuda on a machine with a GPU")
    peak = peak_gflops(target, query_gpu(target.device).clocks[0])
    configs = ConfigSource(target, args.budget, args.log_dir, args.records)
    if args.budget <= 0:
        compile_ahead(cases, configs, target)
    return GpuKernelBench(target, configs, names, peak), peak


def parse_gpu_names(text: str | None) -> list[str]:
    """ "torch-fp32,cusparse" -> keys of the JSON; None stands for all that are installed."""
    known = ("torch-fp32", "torch-tf32", "torch-fp16", "cusparse", TWO_FOUR, *BLOCK_COMPETITORS)
    if version_of("torch") == "missing":
        if text not in (None, "none"):
            raise EnvironmentProblem("torch is not installed", hint="pip install torch, or use --against none")
        return []
    names = list(known) if text is None else [name for name in text.split(",") if name not in ("", "none")]
    for name in names:
        if name not in known:
            raise UsageError(
                f"--against {name}: unknown competitor{did_you_mean(name, known)}",
                hint=f"known: {', '.join(known)}, none",
            )
    if version_of("triton") == "missing":
        wanted = [name for name in names if name in BLOCK_COMPETITORS]
        if wanted and text is not None:
            raise EnvironmentProblem("triton is not installed", hint=f"pip install triton, or leave out {wanted[0]}")
        names = [name for name in names if name not in BLOCK_COMPETITORS]
    return names


def bench(args: argparse.Namespace, cases: list[Case], names: list[str], target: Target) -> tuple[dict[str, Any], bool]:
    """(the JSON object, whether Ctrl-C ended it)."""
    from benchlib.kernel_row import Failed
    from benchlib.summary import summarize_kernels

    runner, peak = open_gpu(args, names, target, cases) if target.kind == "cuda" else open_cpu(args, names, target)
    print(f"{len(cases)} cases on {target}, {target.threads} threads, peak {peak:.0f} GFLOP/s", file=sys.stderr)
    result: dict[str, Any] = {
        "schema": 1, "machine": {**describe_machine(target), "fma_peak_gflops": peak}, "rows": [], "summary": {},
    }  # fmt: skip
    interrupted = False
    try:
        for case in cases:
            try:
                row = runner.row(case)
            except (Failed, SparseTvmError) as error:
                row = {"suite": case.suite, "case": case.name, "group": case.group, "error": str(error)}
            result["rows"].append(row)
            print(show(row), file=sys.stderr, flush=True)
            result["summary"] = summarize_kernels(result["rows"])
            if args.json and args.json != "-":
                Path(args.json).write_text(json.dumps(result, indent=2) + "\n")
    except KeyboardInterrupt:
        interrupted = True
    return result, interrupted


def main() -> int:
    args = parse_arguments()
    try:
        target = parse_target(args.target, args.threads, args.allow_tf32, args.allow_fp16)
        if target.kind == "cpu":
            use_threads(args.threads)
            pin(args.threads)
        from benchlib.competitors import parse_names
        from benchlib.suites import find_cases

        names = parse_gpu_names(args.against) if target.kind == "cuda" else parse_names(args.against)
        cases = [
            case
            for suite in args.suite
            for case in find_cases(
                suite,
                target,
                patterns=args.patterns,
                columns=args.n,
                sparsities=args.sparsity,
                limit=args.limit,
                model=args.model,
                parts=args.case,
            )
        ]
        result, interrupted = bench(args, cases, names, target)
    except SparseTvmError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if not args.json or args.json == "-":
        print(json.dumps(result, indent=2))
    if interrupted:
        return 130
    return 1 if result["summary"].get("failed") else 0


if __name__ == "__main__":
    sys.exit(main())
