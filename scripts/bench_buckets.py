"""What an open dimension costs: a library with buckets beside static libraries, at every size.

    python scripts/make_models.py MODELS resnet50 bert_4l --open
    python scripts/bench_buckets.py MODELS/bert_4l_s90_open.onnx --buckets 1,4,8,16,48,64,128 \
        [--sizes 1,2,3,7,8,33,64,128] [--static 1,8,33] [--work DIR] [--compile-only] [--json PATH]

For each size (of --static) the model is also compiled with that size fixed. Both libraries run in turn on the same
inputs, and outputs are compared with ONNX Runtime. Expected: at bucket sizes within 5 % of the static library, between
them within 25 %.
`--work` keeps the libraries, so that compiling (any time) and timing (a quiet machine) may be two calls.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

import sparsetvm
from sparsetvm.cli.params import Buckets
from sparsetvm.core.target import parse_target
from sparsetvm.runtime.compare import BenchPlan, Run, interleave
from sparsetvm.runtime.module import Module
from sparsetvm.runtime.verify import onnxruntime_session

_AT_BUCKET, _BETWEEN = 1.05, 1.25
_SLOW_RUNS = 7  # of each library, where one takes more than a tenth of --seconds


def shapes_of(module: Module, size: int) -> dict[str, tuple[int, ...]]:
    return {info.name: info.sized(size).shape for info in module.inputs}


def compile_all(model: Path, buckets: Any, sizes: list[int], work: Path, threads: int) -> None:
    """The library with buckets and one for each size, those that are not there yet."""
    if not (work / "buckets.so").exists():
        report = sparsetvm.compile(model, work / "buckets.so", threads=threads, buckets=buckets, log_dir=work)
        print(f"buckets: compiled in {report.seconds:.0f} s", flush=True)
    with sparsetvm.load(work / "buckets.so") as module:
        for size in sizes:
            static = work / f"static_{size}.so"
            if not static.exists():
                shapes = shapes_of(module, size)
                report = sparsetvm.compile(model, static, threads=threads, shapes=shapes, log_dir=work)
                print(f"static {size}: compiled in {report.seconds:.0f} s", flush=True)


def bench(model: Path, sizes: list[int], work: Path, threads: int, seconds: float, busy: bool) -> list[dict[str, Any]]:
    """A row for each size."""
    session = onnxruntime_session(model, threads)
    rows = []
    with sparsetvm.load(work / "buckets.so", threads=threads) as module:
        assert module.dynamic is not None
        for size in sizes:
            feed = module.random_inputs(size=size)
            runs: dict[str, list[Run]] = {"buckets": [module.prepared(feed)]}
            library = work / f"static_{size}.so"
            if library.exists():
                runs["static"] = [sparsetvm.load(library, threads=threads).prepared(feed)]
            begun = time.perf_counter()
            runs["buckets"][0]()
            slow = time.perf_counter() - begun > seconds / 10
            timed = interleave(runs, BenchPlan(seconds, iterations=_SLOW_RUNS if slow else None))
            taken = {name: float((np.min if busy else np.median)(found.times)) for name, found in timed.items()}
            ours, theirs = module.run(feed), session.run(None, feed)
            error = max(
                float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in zip(ours.values(), theirs, strict=True)
            )
            static = taken.get("static")
            limit = _AT_BUCKET if size in module.dynamic.buckets else _BETWEEN
            rows.append(
                {
                    "size": size, "bucket": size in module.dynamic.buckets, "buckets_ms": taken["buckets"],
                    "static_ms": static, "ratio": static and taken["buckets"] / static, "limit": limit,
                    "rel_error": error,
                }
            )  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--buckets", default="1,8,64")
    parser.add_argument("--sizes", default="1,2,3,7,8,33,64,128")
    parser.add_argument("--static", help="sizes that are also compiled alone  [default: those of --sizes]")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each library and size")
    parser.add_argument("--work", type=Path, default=Path("bench_buckets"))
    parser.add_argument("--busy", action="store_true", help="the fastest run counts, not the median: others run here")
    parser.add_argument("--compile-only", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    sizes = [int(size) for size in args.sizes.split(",")]
    work = args.work / args.model.stem
    work.mkdir(parents=True, exist_ok=True)
    alone = [int(size) for size in (args.static or args.sizes).split(",")]
    compile_all(args.model, Buckets().convert(args.buckets, None, None), alone, work, args.threads)
    if args.compile_only:
        return
    rows = bench(args.model, sizes, work, args.threads, args.seconds, args.busy)
    print(f"{args.model.stem}, buckets {args.buckets}, {args.threads} threads, {parse_target('cpu')}")
    print("| size | with buckets, ms | static, ms | ratio | limit | relative error |\n|---|---|---|---|---|---|")
    for row in rows:
        mark = "" if (row["ratio"] or 0) <= row["limit"] else " (missed)"
        static, ratio = (f"{row[key]:.3f}" if row[key] else "" for key in ("static_ms", "ratio"))
        print(
            f"| {row['size']}{' (bucket)' if row['bucket'] else ''} | {row['buckets_ms']:.3f} | {static} "
            f"| {ratio}{mark} | {row['limit']} | {row['rel_error']:.1e} |"
        )
    if args.json:
        args.json.write_text(json.dumps({"schema": 1, "model": args.model.name, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
