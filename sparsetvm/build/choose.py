"""Which config each layer is compiled with: what tuning found, else the log, else the default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from sparsetvm.build.network import LayerChoice
from sparsetvm.core.target import DeviceFingerprint, Target
from sparsetvm.core.task import Task
from sparsetvm.errors import NoCandidateError
from sparsetvm.log.location import log_dir as find_log_dir
from sparsetvm.log.lookup import RecordIndex
from sparsetvm.search.candidates import candidates_of, validator
from sparsetvm.search.outcome import TaskOutcome

_REPORT = "report the model: every layer should have a schedule"


def open_index(log_dir: Path | str | None, records: Sequence[Path | str]) -> RecordIndex:
    """The records that `--records`, the log folder, SPARSETVM_RECORDS and the package hold."""
    return RecordIndex.open(find_log_dir(log_dir), list(records))


def choose(
    tasks: Mapping[str, Task],
    target: Target,
    index: RecordIndex,
    device: DeviceFingerprint,
    *,
    reuse: bool = True,
    outcomes: Sequence[TaskOutcome] = (),
) -> dict[str, LayerChoice]:
    """A choice for every layer. `outcomes` of a tuning run come first; a hard mismatch in the log is never applied."""
    tuned = {id(outcome.task): outcome for outcome in outcomes}
    made: dict[int, LayerChoice] = {}
    for task in tasks.values():
        if id(task) in made:
            continue
        outcome = tuned.get(id(task))
        if outcome is not None:
            why = outcome.why or f"the fastest of {sum(outcome.statuses.values())} candidates that were measured here"
            made[id(task)] = LayerChoice(outcome.config, outcome.source, outcome.best_us, outcome.dense_us, why)
        else:
            made[id(task)] = _from_log(task, target, index, device, reuse)
    return {name: made[id(task)] for name, task in tasks.items()}


def _from_log(task: Task, target: Target, index: RecordIndex, device: DeviceFingerprint, reuse: bool) -> LayerChoice:
    candidates = candidates_of(task.workload, target)
    if not candidates.choices:
        raise NoCandidateError(
            f"no schedule template matches {task.workload.describe()} on {target}", layer=task.name, hint=_REPORT
        )
    decision = index.best(task.workload, device, validator(candidates), reuse)
    if decision.record is not None and decision.kind in ("exact", "compatible"):
        source = "shipped" if decision.source == "shipped" else decision.kind
        return LayerChoice(decision.record.config, source, decision.record.best_us, why=decision.why[0])
    default = candidates.default
    dense = candidates.is_dense(default) and not candidates.dense_only
    why = "no record may be used" + (f": {decision.why[0]}" if decision.why else "")
    return LayerChoice(default, "dense" if dense else "default", why=why)


def choose_dense(tasks: Mapping[str, Task], target: Target) -> dict[str, LayerChoice]:
    """The default dense config for every layer: the baseline that ignores zeros."""
    chosen = {}
    for name, task in tasks.items():
        candidates = candidates_of(task.workload, target)
        dense = next((choice.default for choice in candidates.choices if choice.dense), None)
        if dense is None:
            raise NoCandidateError(f"no dense template matches {task.workload.describe()}", layer=name, hint=_REPORT)
        chosen[name] = LayerChoice(dense, "dense", why="dense kernels were asked for")
    return chosen


def require_records(tasks: Mapping[str, Task], choices: Mapping[str, LayerChoice]) -> None:
    """Raise NoCandidateError naming the pruned layers that got a default config."""
    missing = [
        name
        for name, choice in choices.items()
        if choice.source in ("default", "dense")
        and choice.best_us is None
        and tasks[name].workload.pattern.kind != "dense"
    ]
    if missing:
        named = ", ".join(missing[:5]) + (", ..." if missing[5:] else "")
        raise NoCandidateError(
            f"{len(missing)} pruned layers have no usable record ({named})",
            hint="run `sparsetvm tune MODEL` on this device, or pass --records",
        )
