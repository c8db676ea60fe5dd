"""Where a tune measures: on this machine, or on the workers of a fleet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sparsetvm.core.results import Progress
from sparsetvm.core.target import DeviceFingerprint, Target, device_fingerprint, parse_target
from sparsetvm.errors import UsageError
from sparsetvm.measure.nvcc import find_compiler
from sparsetvm.measure.pool import Measurer, default_jobs
from sparsetvm.search import trial


@dataclass(frozen=True)
class Place:
    """target: what is compiled for. device: what measures. open_measurer: repeats -> the measurer."""

    target: Target
    device: DeviceFingerprint
    open_measurer: Callable[[int], trial.Measurer]


def find_place(
    target: str,
    threads: int | None,
    allow_tf32: bool,
    allow_fp16: bool,
    *,
    tracker: str | None = None,
    key: str | None = None,
    jobs: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    measures: bool = True,
) -> Place:
    """The device of `target`, or with `tracker` that of the workers of `key`, whose kind `target` then may name.

    measures: False when nothing will be compiled. Raises UsageError, TargetError, EnvironmentProblem.
    """
    if (tracker is None) != (key is None):
        raise UsageError("--tracker and --key belong together", hint="write --tracker HOST:PORT --key NAME")
    if tracker is not None and key is not None:
        place = _fleet_place(target, threads, allow_tf32, allow_fp16, tracker, key, jobs, seed, progress)
    else:
        where = parse_target(target, threads, allow_tf32, allow_fp16)

        def open_measurer(repeats: int) -> Measurer:
            return Measurer(where, jobs=jobs or default_jobs(where), repeats=repeats, seed=seed, progress=progress)

        place = Place(where, device_fingerprint(where), open_measurer)
    if place.target.kind == "cuda" and measures:
        find_compiler()  # fail before the search, not in every candidate
    return place


def _fleet_place(
    target: str,
    threads: int | None,
    allow_tf32: bool,
    allow_fp16: bool,
    tracker: str,
    key: str,
    jobs: int | None,
    seed: int,
    progress: Progress | None,
) -> Place:
    from sparsetvm.measure.fleet import Fleet, FleetMeasurer

    device, *named = target.split(",")
    allowed = {"tf32": allow_tf32, "fp16": allow_fp16, "bf16": False}
    allowed |= {name: True for name in allowed if name in named}
    permissions = {f"allow_{name}": value for name, value in allowed.items()}
    fleet = Fleet(tracker, key, threads=threads, **permissions)
    kind = device.partition(":")[0]
    if (target != "cpu" and kind != fleet.target.kind) or (any(allowed.values()) and fleet.target.kind == "cpu"):
        raise UsageError(
            f"the workers of key '{key}' measure on {fleet.device.model}, which --target or --allow-* does not fit",
            hint="leave --target out: it is what the workers measure on",
        )

    def open_measurer(repeats: int) -> FleetMeasurer:
        return fleet.measurer(jobs=jobs, repeats=repeats, seed=seed, progress=progress)

    return Place(fleet.target, fleet.device, open_measurer)
