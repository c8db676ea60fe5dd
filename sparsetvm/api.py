"""The Python API: what the command line calls. `import sparsetvm` re-exports these functions lazily.

All functions raise subclasses of SparseTvmError (errors.py) and nothing else on purpose.
"""

from __future__ import annotations

import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsetvm.core.results import (
    BenchReport,
    CompileReport,
    DoctorReport,
    Event,
    InspectReport,
    Progress,
    PruneReport,
    TuneReport,
    VerifyReport,
)
from sparsetvm.core.target import Target, device_fingerprint, parse_target
from sparsetvm.core.task import Task
from sparsetvm.errors import UsageError
from sparsetvm.rewrite.prepare import Prepared, prepare
from sparsetvm.runtime.module import Module

Shapes = Mapping[str, tuple[int, ...]]
PathLike = str | Path


def inspect(
    model: PathLike,
    *,
    target: str = "cpu",
    threads: int | None = None,
    shapes: Shapes | None = None,
    allow_tf32: bool = False,
) -> InspectReport:
    """Which layers of an ONNX model are pruned, how, and what that is expected to gain on `target`.

    allow_tf32, here and below: on a GPU, let dense kernels round the factors of products to TF32.
    """
    from sparsetvm.analysis.layers import inspect_layers

    where = parse_target(target, threads, allow_tf32)
    prepared = prepare(model, where, shapes)
    workloads = {name: task.workload for name, task in prepared.tasks.items()}
    layers = inspect_layers(prepared.graph, workloads, where)
    return InspectReport(model=str(model), target=str(where), layers=layers, notes=prepared.notes)


def tasks(
    model: PathLike,
    *,
    target: str = "cpu",
    threads: int | None = None,
    shapes: Shapes | None = None,
    allow_tf32: bool = False,
) -> list[Task]:
    """The tuning tasks of a model, in execution order."""
    return prepare(model, parse_target(target, threads, allow_tf32), shapes).unique_tasks()


def tune(
    model: PathLike,
    *,
    target: str = "cpu",
    threads: int | None = None,
    trials: int | None = None,
    budget: float | None = None,
    early_stopping: int | None = None,
    effort: str = "default",
    tasks: str = "all",
    records: Sequence[PathLike] = (),
    log_dir: PathLike | None = None,
    reuse: bool = True,
    dry_run: bool = False,
    seed: int = 0,
    jobs: int | None = None,
    shapes: Shapes | None = None,
    output: PathLike | None = None,
    allow_tf32: bool = False,
    progress: Progress | None = None,
) -> TuneReport:
    """Search the fastest config of every layer on this device and append every measurement to the tuning log.

    budget: seconds; trials: measurements in all; effort: "quick", "default" or "max" when neither is given. tasks:
    "all" or names and numbers ("2,5-7,layer"). With `output` the model is compiled afterwards. Ctrl-C ends the search
    early; the report then has `interrupted` set and everything measured is in the log.
    """
    from sparsetvm.build.compile import check_can_write
    from sparsetvm.measure.nvcc import find_compiler
    from sparsetvm.measure.pool import Measurer, default_jobs
    from sparsetvm.search.budget import TuneOptions
    from sparsetvm.search.run import TuneRun

    begun = time.monotonic()
    warnings: list[str] = []
    tell = _collect(warnings, progress or _silent)
    where = parse_target(target, threads, allow_tf32)
    if where.kind == "cuda" and not dry_run:
        find_compiler()  # fail before the search, not in every candidate
    if output is not None:
        check_can_write(Path(output))  # fail before the search, not after it
    options = TuneOptions(effort, trials, budget, early_stopping, reuse, uuid.uuid4().hex[:12])
    _ = options.preset
    prepared = prepare(model, where, shapes)
    for note in prepared.notes:
        tell(Event(kind="note", message=note))

    def open_measurer(repeats: int) -> Measurer:
        return Measurer(where, jobs=jobs or default_jobs(where), repeats=repeats, seed=seed, progress=tell)

    run = TuneRun(
        str(prepared.path), prepared.unique_tasks(), where, options, records, log_dir, seed, open_measurer, tell
    )
    report = run.dry(tasks) if dry_run else run.tune(tasks)
    if output is not None and not dry_run and not report.interrupted:
        choices = _choices(prepared, where, run.index, reuse=True, outcomes=run.outcomes)
        tell(Event(kind="compile", message=f"compiling {output}"))
        _write(prepared, where, choices, Path(output))
        report.output = str(output)
    report.seconds = time.monotonic() - begun
    report.warnings = warnings
    tell(Event(kind="end", message="done"))
    return report


def compile(
    model: PathLike,
    output: PathLike,
    *,
    target: str = "cpu",
    threads: int | None = None,
    records: Sequence[PathLike] = (),
    log_dir: PathLike | None = None,
    shapes: Shapes | None = None,
    reuse: bool = True,
    require_tuned: bool = False,
    allow_tf32: bool = False,
    progress: Progress | None = None,
) -> CompileReport:
    """Compile an ONNX model into the library `output` and its manifest, with the best known config of every layer.

    require_tuned: raise NoCandidateError naming the layers that no record covers, instead of using default configs.
    """
    from sparsetvm.build.choose import open_index, require_records
    from sparsetvm.build.compile import check_can_write

    begun = time.monotonic()
    tell = progress or _silent
    where = parse_target(target, threads, allow_tf32)
    check_can_write(Path(output))
    prepared = prepare(model, where, shapes)
    index = open_index(log_dir, records)
    for note in [*prepared.notes, *index.skipped()]:
        tell(Event(kind="note", message=note))
    choices = _choices(prepared, where, index, reuse=reuse)
    if require_tuned:
        require_records(prepared.tasks, choices)
    tell(Event(kind="compile", message=f"compiling {output}"))
    manifest = _write(prepared, where, choices, Path(output))
    layers = [
        {
            "name": name,
            "workload": prepared.tasks[name].workload.describe(),
            "config": str(choice.config),
            "arithmetic": choice.arithmetic,
            "source": choice.source,
            "why": choice.why,
            "best_us": choice.best_us,
        }
        for name, choice in choices.items()
    ]
    return CompileReport(
        model=str(model),
        target=str(where),
        output=str(output),
        manifest=str(manifest),
        seconds=time.monotonic() - begun,
        layers=layers,
    )


def load(path: PathLike, *, threads: int | None = None) -> Module:
    """Load a compiled model. A `.so` is code: load only what you trust."""
    return Module(path, threads=threads)


def verify(
    module_path: PathLike,
    reference: PathLike,
    *,
    samples: int = 3,
    tolerance: float | None = None,
    seed: int = 0,
    per_layer: bool = False,
) -> VerifyReport:
    """Compare a compiled model with ONNX Runtime on random inputs; `passed` says whether all errors are in bounds.

    tolerance: on the relative L2 error. None for that of the manifest: 1e-5, more with TF32 layers, 1e-2 for float16.
    per_layer: also compile the model again, to compare each layer (runtime/verify_layers.py).
    """
    from sparsetvm.runtime.verify import verify_module

    with load(module_path) as module:
        return verify_module(
            module, Path(reference), samples=samples, tolerance=tolerance, seed=seed, per_layer=per_layer
        )


def bench(
    target_path: PathLike,
    *,
    against: Sequence[str] = ("ort", "dense"),
    threads: int = 1,
    seconds: float = 3.0,
    inputs: Mapping[str, Any] | None = None,
    reference_model: PathLike | None = None,
    target: str = "cpu",
    allow_tf32: bool = False,
) -> BenchReport:
    """Time a compiled model (or an .onnx file, compiled first) beside competitors, interleaved in one process.

    against: "ort" (ONNX Runtime), "openvino" (its default precision), "openvino-f32" and "dense" (our own build of the
    same model with dense kernels only). target: what an .onnx file is compiled for. On a GPU inputs and outputs stay
    there, and "ort" and "openvino", which run on the CPU, are left out.
    """
    from sparsetvm.runtime.compare import interleave
    from sparsetvm.runtime.openvino import openvino_run
    from sparsetvm.runtime.verify import check_signature, onnxruntime_session

    notes: list[str] = []
    path = Path(target_path)
    reference = Path(reference_model) if reference_model else path if path.suffix == ".onnx" else None
    with tempfile.TemporaryDirectory(prefix="sparsetvm-bench-") as folder:
        if path.suffix == ".onnx":
            library = Path(folder) / "model.so"
            compile(path, library, target=target, threads=threads, allow_tf32=allow_tf32)
        else:
            library = path
        module = load(library, threads=threads)
        if reference is None and against:
            reference = _recorded_model(module)
        feed = dict(inputs) if inputs is not None else module.random_inputs()
        runs: dict[str, Any] = {"ours": module.prepared(feed)}
        built_for = module.built_for
        if built_for is not None and built_for.kind == "cuda":
            left_out = [name for name in against if name != "dense"]
            against = [name for name in against if name == "dense"]
            if left_out:
                notes.append(f"{', '.join(left_out)} left out: on the CPU no competitor of a GPU")
        if "ort" in against and reference is not None:
            session = onnxruntime_session(reference, threads)
            check_signature(session, module, reference)
            runs["ort"] = lambda: session.run(None, feed)
        for name in ("openvino", "openvino-f32"):
            if name in against and reference is not None:
                runs[name] = openvino_run(reference, threads, feed, float32=name == "openvino-f32")
        if "dense" in against and reference is not None:
            shapes = {info.name: info.shape for info in module.inputs}
            where = built_for if built_for is not None and built_for.kind == "cuda" else parse_target("cpu", threads)
            runs["dense"] = _dense_module(reference, Path(folder) / "dense.so", where, shapes).prepared(feed)
        latency = interleave(runs, seconds)
        notes.extend(module.notes)
    ours = latency.pop("ours")
    return BenchReport(
        model=str(target_path),
        threads=threads,
        latency_ms=ours,
        against=latency,
        speedup={name: theirs.median / ours.median for name, theirs in latency.items()},
        notes=notes,
    )


def prune(
    model: PathLike, output: PathLike, *, sparsity: float | None = None, pattern: str = "unstructured"
) -> PruneReport:
    """One-shot magnitude pruning of all large layers, for what-if questions about speed (accuracy will suffer)."""
    from sparsetvm.analysis.prune import prune_model

    return prune_model(model, output, sparsity, pattern)


def doctor() -> DoctorReport:
    """Check what sparsetvm needs on this machine."""
    from sparsetvm.report.doctor import run_doctor

    return run_doctor()


def _collect(warnings: list[str], progress: Progress) -> Progress:
    """`progress`, which also notes the messages of warnings."""

    def tell(event: Event) -> None:
        if event.kind == "warning":
            warnings.append(f"{event.task}: {event.message}")
        progress(event)

    return tell


def _silent(_: Event) -> None:
    pass


def _choices(prepared: Prepared, target: Target, index: Any, *, reuse: bool, outcomes: Sequence[Any] = ()) -> Any:
    from sparsetvm.build.choose import choose

    return choose(prepared.tasks, target, index, device_fingerprint(target), reuse=reuse, outcomes=outcomes)


def _write(prepared: Prepared, target: Target, choices: Any, output: Path) -> Path:
    """Compile to `output`; returns the path of the manifest."""
    from sparsetvm.build.compile import compile_graph

    model = {"name": prepared.path.name, "path": str(prepared.path.resolve()), "sha256": prepared.digest}
    return compile_graph(prepared.graph, prepared.tasks, choices, target, output, model)


def _recorded_model(module: Module) -> Path:
    """The ONNX file that the manifest names."""
    recorded = module.manifest.get("model", {})
    path = Path(str(recorded.get("path", "")))
    if not path.is_file():
        raise UsageError(
            f"the model that '{module.path}' was compiled from is not at '{path}' any more",
            hint="pass it with --reference MODEL.onnx, or use --against none",
        )
    return path


def _dense_module(model: Path, library: Path, where: Target, shapes: Shapes) -> Module:
    from sparsetvm.build.choose import choose_dense

    prepared = prepare(model, where, shapes)
    _write(prepared, where, choose_dense(prepared.tasks, where), library)
    return load(library, threads=where.threads)


__all__ = [
    "bench",
    "compile",
    "doctor",
    "inspect",
    "load",
    "prune",
    "tasks",
    "tune",
    "verify",
]
