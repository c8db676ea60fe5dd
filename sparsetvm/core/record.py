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
SCHEMA_VERSION = 1


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement.

    times_us: medians of the repeats in microseconds per call, empty unless status is "ok".
    error: relative L2 error against the float64 reference, None when the outputs were not compared.
    message: first line of what went wrong, "" when ok.
    template_version, space: version of the template and fingerprint of the search space the config comes from.
    stage: "search" (first timing), "final" (re-timed interleaved with dense) or "check" (re-measured before reuse).
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
    schema: int = SCHEMA_VERSION

    @property
    def best_us(self) -> float:
        """Median of the repeats in microseconds; infinity for a failed trial."""
        if not self.times_us:
            return float("inf")
        ordered = sorted(self.times_us)
        return ordered[len(ordered) // 2]
