"""Time a compiled model beside competitors, all interleaved in one process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsetvm.build.families import dense_networks, write_library
from sparsetvm.core.manifest import ModelInfo
from sparsetvm.core.results import BenchReport
from sparsetvm.core.target import Target, parse_target
from sparsetvm.errors import UsageError
from sparsetvm.frontend.recorded import recorded_model
from sparsetvm.rewrite.prepare_buckets import prepare_family
from sparsetvm.runtime.arrays import size_of_shapes
from sparsetvm.runtime.compare import interleave
from sparsetvm.runtime.module import Module
from sparsetvm.runtime.openvino import openvino_run
from sparsetvm.runtime.verify import check_signature, onnxruntime_session

Shapes = Mapping[str, tuple[int, ...]]


def bench_module(
    module: Module,
    name: str,
    reference: Path | None,
    folder: Path,
    *,
    against: Sequence[str],
    threads: int,
    seconds: float,
    inputs: Mapping[str, Any] | None,
    shapes: Shapes | None,
    per_layer: bool,
) -> BenchReport:
    """Milliseconds of `module` and of each of `against` on the same inputs (random ones when None).

    name: for the report. reference: the ONNX file, None for the one that the manifest names. folder: for the dense
    build. shapes: sizes for a model with an open dimension; the largest bucket when None.
    """
    notes: list[str] = []
    if reference is None and against:
        reference = _recorded(module)
    feed = dict(inputs) if inputs is not None else module.random_inputs(size=size_of_shapes(module, shapes))
    runs: dict[str, Callable[[], object]] = {"ours": module.prepared(feed)}
    built_for = module.built_for
    if built_for is not None and built_for.kind == "cuda":
        if per_layer:
            raise UsageError("--per-layer: a model on a GPU runs as one CUDA graph", hint="leave it out")
        left_out = [name for name in against if name != "dense"]
        against = [name for name in against if name == "dense"]
        if left_out:
            notes.append(f"{', '.join(left_out)} left out: on the CPU no competitor of a GPU")
    if reference is not None:
        runs.update(_competitors(module, reference, folder, against, threads, feed))
    latency = interleave(runs, seconds)
    layers = module.per_layer(feed, seconds=seconds) if per_layer else []
    ours = latency.pop("ours")
    return BenchReport(
        model=name,
        threads=threads,
        latency_ms=ours,
        against=latency,
        speedup={name: theirs.median / ours.median for name, theirs in latency.items()},
        notes=[*notes, *module.notes],
        per_layer=layers,
    )


def _competitors(
    module: Module, reference: Path, folder: Path, against: Sequence[str], threads: int, feed: Mapping[str, Any]
) -> dict[str, Callable[[], object]]:
    runs: dict[str, Callable[[], object]] = {}
    if "ort" in against:
        session = onnxruntime_session(reference, threads)
        check_signature(session, module, reference)
        runs["ort"] = lambda: session.run(None, feed)
    for name in ("openvino", "openvino-f32"):
        if name in against:
            runs[name] = openvino_run(reference, threads, feed, float32=name == "openvino-f32")
    if "dense" in against:
        built_for = module.built_for
        where = built_for if built_for is not None and built_for.kind == "cuda" else parse_target("cpu", threads)
        shapes = {name: tuple(array.shape) for name, array in feed.items()}
        runs["dense"] = _dense_module(reference, folder / "dense.so", where, shapes).prepared(feed)
    return runs


def _recorded(module: Module) -> Path:
    """The ONNX file that the manifest names."""
    known = module.signature.model if module.signature else ModelInfo()
    try:
        return recorded_model(module.path, known.name, known.sha256)
    except UsageError as error:
        raise UsageError(error.message, hint="pass it with --reference MODEL.onnx, or use --against none") from error


def _dense_module(model: Path, library: Path, where: Target, shapes: Shapes) -> Module:
    family = prepare_family(model, where, shapes)
    write_library(family, dense_networks(family, where), where, library)
    return Module(library, threads=where.threads)
