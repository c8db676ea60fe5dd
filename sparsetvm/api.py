"""The Python API: what the command line calls. `import sparsetvm` re-exports these functions lazily.

All functions raise subclasses of SparseTvmError (errors.py) and nothing else on purpose. Their reports are typed
(core/results.py), become JSON with `to_json()` and tables in a notebook. docs/python.md tells the whole of it.

Threads: a loaded Module may be shared (calls wait for each other), and modules may run beside each other. `tune` and
`bench` measure: run nothing else beside them, and one of them at a time. `compile` may run in any one thread.

    >>> import sparsetvm
    >>> from sparsetvm.examples import digits_path
    >>> report = sparsetvm.inspect(digits_path(), threads=1)
    >>> [(layer.name, layer.verdict) for layer in report.layers][:2]
    [('conv1', 'dense'), ('conv2', 'sparse')]
"""

from __future__ import annotations

import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from sparsetvm.core.results import (
    BenchReport,
    CompileReport,
    DoctorReport,
    Event,
    InspectReport,
    LibraryReport,
    PageReport,
    Progress,
    PruneReport,
    TuneReport,
    VerifyReport,
)
from sparsetvm.core.target import Target, device_fingerprint, parse_target
from sparsetvm.core.task import Task
from sparsetvm.rewrite.prepare import Prepared
from sparsetvm.rewrite.prepare_buckets import Buckets, Family, prepare_family
from sparsetvm.runtime.module import Module

Shapes = Mapping[str, tuple[int, ...]]
PathLike = str | Path
Calibration = Mapping[str, Any] | Literal["random"] | None


def inspect(
    model: PathLike,
    *,
    target: str = "cpu",
    threads: int | None = None,
    shapes: Shapes | None = None,
    allow_tf32: bool = False,
    what_if: Sequence[str] = (),
    sparsity: float | None = None,
    records: Sequence[PathLike] = (),
    log_dir: PathLike | None = None,
    allow_fp16: bool = False,
    buckets: Buckets | None = None,
) -> InspectReport:
    """Which layers of an ONNX model are pruned, how, and what that is expected to gain on `target`.

    model: path of the .onnx file. target: as `--target`, e.g. "cpu", "cpu,znver4", "cuda,sm_90". threads: of the
    compiled code; None for the cores of this process. shapes: input name -> static shape. allow_tf32: on a GPU, let
    dense kernels round the factors of products to TF32; allow_fp16: let any kernel round them to float16, which layers
    of float16 models may do anyway. These six mean the same everywhere below. what_if: patterns as
    `prune` takes them ("block:4x1@0.9"; `sparsity` where one says none); the report's `what_if` then says what each
    would gain and cost, by records of the log where there are some for such layers, else by the roofline. buckets: as
    in `compile`; the layers are those of the largest one.

    >>> from sparsetvm.examples import digits_path
    >>> inspect(digits_path(), target="cpu,znver4", threads=1).layers[1].pattern
    'unstructured'
    """
    from sparsetvm.analysis.layers import expected_of_model, inspect_layers
    from sparsetvm.log.location import log_dir as find_log_dir
    from sparsetvm.log.lookup import RecordIndex
    from sparsetvm.search.what_if import Forecaster, parse_goals

    goals = parse_goals(what_if, sparsity)
    where = parse_target(target, threads, allow_tf32, allow_fp16)
    family = prepare_family(model, where, shapes, buckets)
    prepared = family.largest
    workloads = {name: task.workload for name, task in prepared.tasks.items()}
    speedup, layers_speedup = expected_of_model(prepared.graph, workloads, where)
    report = InspectReport(
        model=str(model),
        target=str(where),
        layers=inspect_layers(prepared.graph, workloads, where),
        notes=[*family.notes, *family.describe()],
        speedup=speedup,
        layers_speedup=layers_speedup,
        threads=where.threads,
    )
    if goals:
        index = RecordIndex.open(find_log_dir(log_dir), list(records))
        forecaster = Forecaster(prepared, where, shapes, index, device_fingerprint(where))
        report.what_if = [forecaster.forecast(goal) for goal in goals]
        report.notes = [*report.notes, *index.skipped()]
    return report


def inspect_library(path: PathLike) -> LibraryReport:
    """What is in a compiled library, told by its manifest: layers, kernels, times, inputs, outputs, target.

    The library is not loaded. Raises UsageError without a manifest beside it, ModelError when that is of another one.
    """
    from sparsetvm.core.library import describe_library

    return describe_library(Path(path))


def tasks(
    model: PathLike,
    *,
    target: str = "cpu",
    threads: int | None = None,
    shapes: Shapes | None = None,
    allow_tf32: bool = False,
    allow_fp16: bool = False,
    buckets: Buckets | None = None,
) -> list[Task]:
    """The tuning tasks of a model, in execution order, each once however many layers share it.

    buckets: as in `compile`.

    >>> from sparsetvm.examples import digits_path
    >>> [task.workload.describe() for task in tasks(digits_path(), target="cpu,znver4", threads=1)][-1]
    'matmul 10x30 n=1'
    """
    where = parse_target(target, threads, allow_tf32, allow_fp16)
    return prepare_family(model, where, shapes, buckets).unique_tasks()


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
    page: PathLike | None = None,
    allow_tf32: bool = False,
    allow_fp16: bool = False,
    calibrate: Calibration = None,
    buckets: Buckets | None = None,
    tracker: str | None = None,
    key: str | None = None,
    progress: Progress | None = None,
) -> TuneReport:
    """Search the fastest config of every layer on this device and append every measurement to the tuning log.

    budget: seconds; trials: measurements in all; effort: "quick", "default" or "max" when neither is given. tasks:
    "all" or names and numbers ("2,5-7,layer"). With `output` the model is compiled afterwards. Ctrl-C ends the search
    early; the report then has `interrupted` set and everything measured is in the log. page: an HTML report to write.
    progress: called with an Event (core/results.py) for each step, in this thread; an exception that it raises ends the
    call. reuse: False ignores the log. records: more logs to read; log_dir: the one to write.
    calibrate, buckets: as in `compile`; the layers of all buckets are tuned. tracker, key: measure on the workers of a
    fleet ("host:port" of a TVM tracker, docs/fleet.md) instead of this machine; their device is the target then.

    >>> from sparsetvm.examples import digits_path
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     report = tune(digits_path(), threads=1, log_dir=folder, dry_run=True)
    >>> (report.trials_run, [task.name for task in report.tasks])
    (0, ['conv1', 'conv2', 'conv3', 'fc1', 'fc2'])
    """
    from sparsetvm.build.compile import check_can_write
    from sparsetvm.measure.place import find_place
    from sparsetvm.search.budget import TuneOptions
    from sparsetvm.search.run import TuneRun

    begun, warnings = time.monotonic(), list[str]()
    tell = _collect(warnings, progress or _silent)
    place = find_place(
        target, threads, allow_tf32, allow_fp16, tracker=tracker, key=key, jobs=jobs, seed=seed, progress=tell,
        measures=not dry_run,
    )  # fmt: skip
    where = place.target
    if output is not None:
        check_can_write(Path(output))  # fail before the search, not after it
    options = TuneOptions(effort, trials, budget, early_stopping, reuse, uuid.uuid4().hex[:12]).checked()
    family = _calibrated(prepare_family(model, where, shapes, buckets), where, shapes, calibrate, tell)
    for note in family.notes:
        tell(Event(kind="note", message=note))
    run = TuneRun(
        str(family.largest.path), family.unique_tasks(), where, options, records, log_dir, seed, place.open_measurer,
        tell, place.device,
    )  # fmt: skip
    report = run.dry(tasks) if dry_run else run.tune(tasks)
    if output is not None and not dry_run and not report.interrupted:
        report.output = _write_tuned(run, family, place, Path(output), tell)
    if page is not None and not dry_run:
        _write_report(run, family.largest, where, options.run, Path(page))
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
    weights: Literal["embed", "separate"] = "embed",
    allow_tf32: bool = False,
    allow_fp16: bool = False,
    calibrate: Calibration = None,
    buckets: Buckets | None = None,
    progress: Progress | None = None,
) -> CompileReport:
    """Compile an ONNX model into the library `output` and its manifest, with the best known config of every layer.

    require_tuned: raise NoCandidateError naming the layers that no record covers, instead of using default configs.
    Nothing is measured. weights: "separate" writes packed weights to a file beside the library, which processes share.
    calibrate: sample inputs (name -> array of the input's shape or (samples, *shape)), or "random": the model runs on
    them to count the zeros that its layers read, and kernels that skip those compete (docs/tuning.md).
    buckets: sizes of the model's symbolic dimension, which then keeps its size open: (1, 8, 64), or {"seq": (16, 128)}
    where there are several; docs/buckets.md tells how runs of other sizes are put together.

    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from sparsetvm.examples import digits_path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     library = pathlib.Path(folder, "digits.so")
    ...     report = compile(digits_path(), library, threads=1)
    ...     with load(library) as module:
    ...         logits = module(np.zeros((1, 1, 8, 8), "float32"))
    >>> (report.layers[0]["name"], logits.shape)
    ('conv1', (1, 10))
    """
    from sparsetvm.build.choose import open_index, require_records
    from sparsetvm.build.compile import check_can_write
    from sparsetvm.build.families import choose_networks, named_layers, write_library

    begun = time.monotonic()
    tell = progress or _silent
    where = parse_target(target, threads, allow_tf32, allow_fp16)
    check_can_write(Path(output))
    family = _calibrated(prepare_family(model, where, shapes, buckets), where, shapes, calibrate, tell)
    index = open_index(log_dir, records)
    for note in [*family.notes, *index.skipped()]:
        tell(Event(kind="note", message=note))
    networks = choose_networks(family, where, index, device_fingerprint(where), reuse=reuse)
    if require_tuned:
        for network in networks:
            require_records(network.tasks, network.choices)
    tell(Event(kind="compile", message=f"compiling {output}"))
    manifest = write_library(family, networks, where, Path(output), separate=weights == "separate")
    layers = [
        {
            "name": name,
            "workload": task.workload.describe(),
            "config": str(choice.config),
            "arithmetic": choice.arithmetic,
            "source": choice.source,
            "why": choice.why,
            "best_us": choice.best_us,
        }
        for name, (task, choice) in named_layers(family, networks).items()
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
    """Load a compiled model; use it in a `with` block, or close it. threads: None for what it was compiled for.

    A `.so` is code: load only what you trust. Raises UsageError when there is no such file, ModelError when it is no
    compiled model or not that of its manifest.
    """
    return Module(path, threads=threads)


def verify(
    module_path: PathLike,
    reference: PathLike,
    *,
    samples: int = 3,
    tolerance: float | None = None,
    seed: int = 0,
    per_layer: bool = False,
    shapes: Shapes | None = None,
) -> VerifyReport:
    """Compare a compiled model with ONNX Runtime on random inputs; `passed` says whether all errors are in bounds.

    tolerance: on the relative L2 error. None for that of the manifest: 1e-5, more with TF32 layers, 1e-2 for float16.
    per_layer: also compile the model again, to compare each layer (runtime/verify_layers.py). shapes: the sizes to run
    of a model with an open dimension; all buckets and sizes between them when None.
    """
    from sparsetvm.runtime.verify import verify_module

    with load(module_path) as module:
        return verify_module(
            module, Path(reference), samples=samples, tolerance=tolerance, seed=seed, per_layer=per_layer,
            shapes=shapes,
        )  # fmt: skip


def bench(
    target_path: PathLike,
    *,
    against: Sequence[str] = ("ort", "dense"),
    threads: int | None = None,
    seconds: float = 3.0,
    iterations: int | None = None,
    warm_up: float = 0.0,
    percentiles: Sequence[float] = (),
    instances: int = 1,
    inputs: Mapping[str, Any] | None = None,
    reference_model: PathLike | None = None,
    target: str = "cpu",
    shapes: Shapes | None = None,
    allow_tf32: bool = False,
    allow_fp16: bool = False,
    per_layer: bool = False,
    export_times: PathLike | None = None,
    progress: Progress | None = None,
) -> BenchReport:
    """Time a compiled model (or an .onnx file, compiled first) beside competitors, interleaved in one process.

    against: "ort" (ONNX Runtime), "openvino" (its default precision), "openvino-f32" and "dense" (our own build of the
    same model with dense kernels only). threads: None for what the library was compiled for. seconds: for each
    competitor, or `iterations` runs instead; warm_up: seconds of runs before. percentiles: more than p50, p90 and p99.
    instances: so many copies of each run at the same time, each with its threads. target, shapes: what an .onnx file is
    compiled for; shapes of a library with an open dimension are the sizes to run (its largest bucket when None). On a
    GPU inputs and outputs stay there, and "ort" and "openvino", which run on the CPU, are left out. per_layer: also the
    times of our kernels. export_times: a JSON file for every single time.
    """
    from sparsetvm.runtime.bench import bench_library
    from sparsetvm.runtime.compare import BenchPlan

    tell, path = progress or _silent, Path(target_path)
    reference = Path(reference_model) if reference_model else path if path.suffix == ".onnx" else None
    with tempfile.TemporaryDirectory(prefix="sparsetvm-bench-") as folder:
        library = path
        if path.suffix == ".onnx":
            library = Path(folder) / "model.so"
            compile(
                path, library, target=target, threads=threads, shapes=shapes, allow_tf32=allow_tf32,
                allow_fp16=allow_fp16, progress=tell,
            )  # fmt: skip
        return bench_library(
            library,
            str(target_path),
            reference,
            Path(folder),
            against=against,
            threads=threads,
            plan=BenchPlan(seconds, iterations, warm_up, tuple(percentiles)),
            instances=instances,
            inputs=inputs,
            shapes=shapes if library is path else None,
            per_layer=per_layer,
            export_times=None if export_times is None else Path(export_times),
            tell=tell,
        )


def prune(
    model: PathLike,
    output: PathLike,
    *,
    sparsity: float | None = None,
    pattern: str = "unstructured",
    share: bool = False,
) -> PruneReport:
    """One-shot magnitude pruning of all large layers, for what-if questions about speed (accuracy will suffer).

    pattern: "unstructured", "block:4x1", "n:m:2:4", "n:m:2:4:output", "rows" (or "filters"), "columns" or "channels",
    with a sparsity of its own as in "block:4x1@0.9". share: layers of equal shape keep weights at the same places.
    """
    from sparsetvm.analysis.prune import prune_model

    return prune_model(model, output, sparsity, pattern, share=share)


def write_report(
    source: PathLike,
    output: PathLike,
    *,
    model: PathLike | None = None,
    target: str | None = None,
    threads: int | None = None,
    shapes: Shapes | None = None,
    log_dir: PathLike | None = None,
    records: Sequence[PathLike] = (),
) -> PageReport:
    """Write an HTML page about `source` to `output`: one file without scripts that loads nothing.

    source: a .so or its manifest, a log (.jsonl or folder), the start of a run's name, or "last". model: the ONNX file,
    for names and pictures of weights; target, threads, shapes: as it was tuned, by default as the records say.
    """
    from sparsetvm.report.html.write import write_page
    from sparsetvm.report.sources import read_story

    story = read_story(
        source, model=model, target=target, threads=threads, shapes=shapes, log_dir=log_dir, records=records
    )
    return write_page(story, str(source), Path(output))


def doctor() -> DoctorReport:
    """Check what sparsetvm needs on this machine."""
    from sparsetvm.report.doctor import run_doctor

    return run_doctor()


def _calibrated(
    family: Family, target: Target, shapes: Shapes | None, calibrate: Calibration, tell: Progress
) -> Family:
    if calibrate is not None:
        from sparsetvm.runtime.calibrate import calibrate_family

        calibrate_family(family, target, shapes, None if isinstance(calibrate, str) else calibrate, tell)
    return family


def _write_tuned(run: Any, family: Any, place: Any, output: Path, tell: Progress) -> str:
    """Compile what a tune has just found; returns the path as a report has it."""
    from sparsetvm.build.families import choose_networks, write_library

    tell(Event(kind="compile", message=f"compiling {output}"))
    networks = choose_networks(family, place.target, run.index, place.device, outcomes=run.outcomes)
    write_library(family, networks, place.target, output)
    return str(output)


def _write_report(run: Any, prepared: Prepared, target: Target, name: str, output: Path) -> None:
    """The page about a run that has just ended: all that the log knows of its tasks on this device."""
    from sparsetvm.report.html.write import write_page
    from sparsetvm.report.sources import add_untold, tell_model
    from sparsetvm.report.story import Story, tasks_of

    workloads, device = {task.workload for task in prepared.tasks.values()}, run.device
    known = [r for r in run.index.records() if r.workload in workloads and r.device.model == device.model]
    story = Story(f"tuning run {name}", tasks_of(known))
    add_untold(story, prepared.unique_tasks(), device)
    tell_model(story, prepared, target)
    write_page(story, name, output)


def _collect(warnings: list[str], progress: Progress) -> Progress:
    """`progress`, which also notes the messages of warnings."""

    def tell(event: Event) -> None:
        if event.kind == "warning":
            warnings.append(f"{event.task}: {event.message}")
        progress(event)

    return tell


def _silent(_: Event) -> None:
    pass


__all__ = [
    "bench", "compile", "doctor", "inspect", "inspect_library", "load", "prune", "tasks", "tune", "verify",
    "write_report",
]  # fmt: skip
