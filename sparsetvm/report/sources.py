"""What `sparsetvm report` can be pointed at: a log, a run in the log, or a compiled model with its manifest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from sparsetvm.analysis.layers import beyond_pattern
from sparsetvm.core.manifest import MANIFEST_SCHEMA, TensorInfo, manifest_path
from sparsetvm.core.record import Record
from sparsetvm.core.target import DeviceFingerprint, Target, parse_target
from sparsetvm.core.task import Task
from sparsetvm.errors import ModelError, SparseTvmError, UsageError, did_you_mean
from sparsetvm.frontend.recorded import recorded_model
from sparsetvm.log.location import LogFile, expand
from sparsetvm.log.location import log_dir as find_log_dir
from sparsetvm.log.lookup import RecordIndex
from sparsetvm.report.story import Story, TaskStory, name_tasks, target_of, tasks_of
from sparsetvm.rewrite.prepare import Prepared, prepare

LAST = "last"
Shapes = Mapping[str, tuple[int, ...]]


class _Layer(msgspec.Struct):
    name: str
    workload_id: str
    source: str = ""
    config: str = ""
    best_us: float | None = None
    dense_us: float | None = None


class _Manifest(msgspec.Struct):
    schema: int
    target: Target
    layers: list[_Layer]
    model: dict[str, str] = {}
    inputs: list[TensorInfo] = []


def read_story(
    source: Path | str,
    *,
    model: Path | str | None = None,
    target: str | None = None,
    threads: int | None = None,
    shapes: Shapes | None = None,
    log_dir: Path | str | None = None,
    records: Sequence[Path | str] = (),
) -> Story:
    """What `source` tells: a .so or its manifest, a .jsonl or a folder of them, the start of a run's name, or "last".

    Raises UsageError when it is none of these, ModelError for a manifest that cannot be understood.
    """
    path = Path(source)
    if path.is_file() and path.suffix in (".so", ".json"):
        return _of_manifest(path if path.suffix == ".json" else manifest_path(path), model, log_dir, records)
    if str(source) and path.exists():
        index = RecordIndex([LogFile(file, "records") for file in expand([path])])
        story = Story(f"tuning log {source}", tasks_of(index.records()))
    else:
        index = RecordIndex.open(find_log_dir(log_dir), records, shipped=False)
        run, found = _run(index.records(), str(source))
        story = Story(f"tuning run {run}", tasks_of(found))
    story.notes += index.skipped()
    if model is not None:
        where = _target(story, target, threads)
        tell_model(story, prepare(model, where, shapes), where)
    return story


def tell_model(story: Story, prepared: Prepared, target: Target) -> None:
    """Add names, weights and structure of a model's layers."""
    tasks = prepared.unique_tasks()
    story.tasks = name_tasks(story.tasks, tasks)
    story.model, story.digest, story.target = str(prepared.path), prepared.digest, target
    if not any(task.layers for task in story.tasks):
        story.notes.append(
            f"no layer of {prepared.path.name} for {target} with {target.threads} threads is among these records"
        )
    for task in story.tasks:
        if task.weight is not None:
            task.structure = beyond_pattern(task.workload.pattern, task.weight)


def _target(story: Story, text: str | None, threads: int | None) -> Target:
    """What the model is read for: as the user says, or as most of the records were measured."""
    common = Counter(task.workload.threads for task in story.tasks).most_common(1)
    count = threads if threads is not None else common[0][0] if common else None
    if text is not None or not story.tasks:
        return parse_target(text or "cpu", count)
    return target_of(story.tasks[-1].device, count or 1)


def _run(records: Sequence[Record], name: str) -> tuple[str, list[Record]]:
    """The run whose name begins so; "last" is the one that measured last."""
    newest = list(dict.fromkeys(r.run for r in sorted(records, key=lambda r: r.time, reverse=True) if r.run))
    fitting = newest[:1] if name == LAST else [run for run in newest if run.startswith(name)]
    if len(fitting) != 1 or not name:
        known = f"the newest runs of the log: {', '.join(newest[:5])}" if newest else "the log is empty"
        what = "several runs begin with" if len(fitting) > 1 else "no file, folder or run named"
        raise UsageError(
            f"{what} '{name}'{did_you_mean(name, newest)}",
            hint=f"give a .jsonl, a folder, a .so, its manifest, a run or '{LAST}' ({known})",
        )
    return fitting[0], [record for record in records if record.run == fitting[0]]


def _of_manifest(
    path: Path, model: Path | str | None, log_dir: Path | str | None, records: Sequence[Path | str]
) -> Story:
    manifest = _read(path)
    wanted = {layer.workload_id: layer for layer in reversed(manifest.layers)}
    index = RecordIndex.open(find_log_dir(log_dir), records)
    known = [record for record in index.records() if record.workload.id in wanted]
    models = Counter(record.device.model for record in known).most_common(1)
    tasks = tasks_of([record for record in known if record.device.model == models[0][0]] if models else [])
    for task in tasks:
        _take(task, manifest, wanted[task.workload.id])
    story = Story(f"compiled model {path.name.removesuffix('.json')}", tasks, manifest.model.get("name", ""))
    story.digest, story.target = manifest.model.get("sha256", ""), manifest.target
    story.notes += index.skipped()
    missing = len(wanted) - len(tasks)
    if missing:
        story.notes.append(
            f"{missing} of its {len(wanted)} tasks have no records in the log: their trials are not shown"
        )
    prepared = _model_of(manifest, path.with_name(path.name.removesuffix(".json")), model, story)
    if prepared is not None:
        where = manifest.target
        device = DeviceFingerprint(where.kind, "", f"any {where}", where.isa, 0, "")
        known_tasks = [task for task in prepared.unique_tasks() if task.workload.id in wanted]
        for task in add_untold(story, known_tasks, device):
            _take(task, manifest, wanted[task.workload.id])
        tell_model(story, prepared, manifest.target)
    return story


def _model_of(manifest: _Manifest, library: Path, model: Path | str | None, story: Story) -> Prepared | None:
    """The model that is given, or the one of the manifest's name and digest near the library."""
    shapes = {info.name: info.shape for info in manifest.inputs}
    if model is not None:
        return prepare(model, manifest.target, shapes)
    try:
        found = recorded_model(library, manifest.model.get("name", ""), manifest.model.get("sha256", ""))
        return prepare(found, manifest.target, shapes)
    except SparseTvmError as problem:
        story.notes.append(f"no pictures of weights: {problem.message}; name the model with --model")
        return None


def add_untold(story: Story, tasks: Sequence[Task], device: DeviceFingerprint) -> list[TaskStory]:
    """Add the tasks of which no record tells; returns them."""
    told = {task.workload for task in story.tasks}
    added = [TaskStory(task.name, task.workload, device, []) for task in tasks if task.workload not in told]
    story.tasks += added
    return added


def _take(task: TaskStory, manifest: _Manifest, layer: _Layer) -> None:
    """What the manifest says goes before what the records say."""
    task.layers = [other.name for other in manifest.layers if other.workload_id == layer.workload_id]
    task.name, task.count = layer.name, len(task.layers)
    task.source, task.config = layer.source, layer.config
    task.best = task.best if layer.best_us is None else layer.best_us
    task.dense = task.dense if layer.dense_us is None else layer.dense_us


def _read(path: Path) -> _Manifest:
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=_Manifest)
    except FileNotFoundError:
        raise UsageError(
            f"no manifest '{path}'", hint="it is written beside the .so; keep the two files together"
        ) from None
    except (OSError, msgspec.MsgspecError) as error:
        raise ModelError(f"'{path}' is no manifest: {error}", hint="give the .so.json that compile wrote") from error
    if manifest.schema != MANIFEST_SCHEMA:
        raise ModelError(
            f"manifest '{path}' has schema {manifest.schema}, this version reads {MANIFEST_SCHEMA}",
            hint="compile the model again",
        )
    return manifest
