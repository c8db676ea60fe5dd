"""A tuning record: one measurement, self-contained. Failure is data: a failed trial is a record with its status."""

from __future__ import annotations

from typing import Literal

import msgspec

from sparsetvm.core.config import Config
from sparsetvm.core.target import DeviceFingerprint, ToolchainFingerprint
from sparsetvm.core.workload import Workload

Status = Literal[
    "ok",
    "invalid",
    "compile_error",
    "compile_timeout",
    "run_error",
    "run_timeout",
    "crash",
    "wrong_answer",
    "out_of_memory",
]
STATUSES: tuple[str, ...] = Status.__args__  # type: ignore[attr-defined]
# Fields with defaults may be added without a new version: readers ignore what they do not know.
SCHEMA_VERSION = 1


class Conditions(msgspec.Struct, frozen=True):
    """The machine as it was right after a measurement. What cannot be read is "" or None.

    governor: policy that sets the core's clock, as Linux names it. mhz: the core's clock, on a GPU that of its
    multiprocessors. load: processes that ran or waited, mean of the last minute. noise: relative difference of two
    timings of one kernel in the same rounds. memory_mhz: clock of a GPU's memory.
    """

    governor: str = ""
    mhz: float | None = None
    load: float | None = None
    noise: float | None = None
    memory_mhz: float | None = None


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement.

    times_us: medians of the repeats in microseconds per call, empty unless status is "ok".
    error: relative L2 error against the float64 reference, None when the outputs were not compared.
    message: first line of what went wrong, "" when ok.
    template_version, space: version of the template and fingerprint of the search space the config comes from.
    stage: "search" (first timing), "final" (re-timed interleaved with dense) or "check" (re-measured before reuse).
    remeasured: why the first times were doubted and taken again, "" when they were not.
    conditions: None in records of versions that did not note them, and when nothing was timed.
    other_us: on a GPU, the time with L2 in the other state: cold for a workload that is timed warm, and vice versa.
    """

    workload: Workload
    config: Config
    status: Status
    device: DeviceFingerprint
    toolchain: ToolchainFingerprint
    template_version: int
    space: str
    times_us: tuple[float, ...] = ()
    error: float | None = None
    message: str = ""
    build_seconds: float = 0.0
    stage: Literal["search", "final", "check"] = "search"
    seed: int = 0
    run: str = ""
    time: str = ""
    remeasured: str = ""
    conditions: Conditions | None = None
    other_us: float | None = None
    schema: int = SCHEMA_VERSION

    @property
    def best_us(self) -> float:
        """Median of the repeats in microseconds; infinity for a failed trial."""
        if not self.times_us:
            return float("inf")
        ordered = sorted(self.times_us)
        return ordered[len(ordered) // 2]
