"""Time a compiled model beside competitors, all interleaved in one process."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sparsetvm.build.families import dense_networks, write_library
from sparsetvm.core.files import write_whole
from sparsetvm.core.manifest import ModelInfo
from sparsetvm.core.results import JSON_SCHEMA, BenchReport, Event, Progress
from sparsetvm.core.target import parse_target
from sparsetvm.errors import UsageError
from sparsetvm.frontend.recorded import recorded_model
from sparsetvm.rewrite.prepare_buckets import prepare_family
from sparsetvm.runtime.arrays import shape_of, size_of_shapes
from sparsetvm.runtime.compare import BenchPlan, Run, Timed, interleave, latency_of
from sparsetvm.runtime.module import Module
from sparsetvm.runtime.openvino import openvino_runs
from sparsetvm.runtime.verify import check_signature, onnxruntime_session

Shapes = Mapping[str, tuple[int, ...]]


def bench_library(
    library: Path,
    name: str,
    reference: Path | None,
    folder: Path,
    *,
    against: Sequence[str],
    threads: int | None,
    plan: BenchPlan,
    instances: int = 1,
    inputs: Mapping[str, Any] | None = None,
    shapes: Shapes | None = None,
    per_layer: bool = False,
    export_times: Path | None = None,
    tell: Progress,
) -> BenchReport:
    """Milliseconds of a library and of each of `against` on the same inputs (random ones when None).

    name: for the report. reference: the ONNX file, None for the one that the manifest names. folder: for our dense
    build. threads: of each instance, None for what the library was compiled for. instances: so many of each competitor
    run at the same time. shapes: sizes of a model with an open dimension, its largest bucket when None.
    export_times: a JSON file for all times.
    """
    with ExitStack() as stack:
        modules = [stack.enter_context(Module(library, threads=threads)) for _ in range(instances)]
        module = modules[0]
        notes = list(module.notes)
        feed = dict(inputs) if inputs is not None else module.random_inputs(size=size_of_shapes(module, shapes))
        against = _fitting(module, against, instances, per_layer, notes)
        runs: dict[str, list[Run]] = {"ours": [each.prepared(feed) for each in modules]}
        for competitor in against:
            model = _recorded(module) if reference is None else reference
            tell(Event(kind="start", message=f"loading {competitor}"))
            if competitor == "dense":
                dense = _dense_library(module, model, folder / "dense.so", feed)
                loaded = [stack.enter_context(Module(dense, threads=module.threads)) for _ in range(instances)]
                runs[competitor] = [each.prepared(feed) for each in loaded]
            else:
                runs[competitor] = _other_runtime(competitor, module, model, feed, instances)
        timed = interleave(runs, plan, tell)
        if per_layer:
            tell(Event(kind="start", message="timing each kernel"))
        layers = module.per_layer(feed, seconds=plan.seconds) if per_layer else []
    if export_times is not None:
        _export(export_times, name, module.threads, instances, timed)
    latency = {of: latency_of(found.times, plan.percentiles, found.wall) for of, found in timed.items()}
    ours = latency.pop("ours")
    return BenchReport(
        model=name,
        threads=module.threads,
        latency_ms=ours,
        against=latency,
        speedup={of: theirs.median / ours.median for of, theirs in latency.items()},
        notes=notes,
        per_layer=layers,
        instances=instances,
    )


def _fitting(
    module: Module, against: Sequence[str], instances: int, per_layer: bool, notes: list[str]
) -> Sequence[str]:
    """Those competitors that run on the device of `module`. Raises UsageError for what a GPU cannot do."""
    if module.built_for is None or module.built_for.kind != "cuda":
        return against
    if per_layer:
        raise UsageError("--per-layer: a model on a GPU runs as one CUDA graph", hint="leave it out")
    if instances > 1:
        raise UsageError("--instances: calls of models on a GPU wait for each other", hint="leave it out")
    left_out = [name for name in against if name != "dense"]
    if left_out:
        notes.append(f"{', '.join(left_out)} left out: on the CPU no competitor of a GPU")
    return [name for name in against if name == "dense"]


def _other_runtime(name: str, module: Module, model: Path, feed: Mapping[str, Any], instances: int) -> list[Run]:
    """Calls that run the ONNX file on `feed`: "ort", "openvino" or "openvino-f32"."""
    if name != "ort":
        return openvino_runs(model, module.threads, feed, float32=name == "openvino-f32", count=instances)
    sessions = [onnxruntime_session(model, module.threads) for _ in range(instances)]
    check_signature(sessions[0], module, model)

    def run_of(session: Any) -> Run:
        return lambda: session.run(None, feed)

    return [run_of(session) for session in sessions]


def _dense_library(module: Module, model: Path, output: Path, feed: Mapping[str, Any]) -> Path:
    """Our own build of the same model with dense kernels only, for the shapes of `feed`."""
    built_for = module.built_for
    where = built_for if built_for is not None and built_for.kind == "cuda" else parse_target("cpu", module.threads)
    family = prepare_family(model, where, {name: shape_of(array) for name, array in feed.items()})
    write_library(family, dense_networks(family, where), where, output)
    return output


def _recorded(module: Module) -> Path:
    """The ONNX file that the manifest names."""
    known = module.signature.model if module.signature else ModelInfo()
    try:
        return recorded_model(module.path, known.name, known.sha256)
    except UsageError as error:
        raise UsageError(error.message, hint="pass it with --reference MODEL.onnx, or use --against none") from error


def _export(path: Path, model: str, threads: int, instances: int, timed: Mapping[str, Timed]) -> None:
    """All times in milliseconds, in the order of the runs (of one instance after the other in each turn)."""
    document = {
        "schema": JSON_SCHEMA, "model": model, "threads": threads, "instances": instances,
        "times_ms": {name: found.times for name, found in timed.items()},
    }  # fmt: skip
    try:
        write_whole(path, lambda file: file.write(json.dumps(document).encode()))
    except OSError as error:
        raise UsageError(f"--export-times {path}: {error.strerror}", hint="name a file in a writable folder") from error
