"""Records for other programs: CSV, and the common results format of the autotuning community ("T4").

T4 is the results schema 1.0.0 of https://github.com/odgaard/TuningSchema (branch T4), which Kernel Tuner and KTT write
as well; see "FAIR Sharing of Data in Autotuning Research", https://doi.org/10.1145/3629527.3651429. Its fields:

schema_version           "1.0.0"
results[].timestamp      time of the record
        .configuration   "template" and the knobs
        .objectives      ["time"]
        .times           compilation_time and runtimes in milliseconds, Kernel Tuner's unit; the schema names none.
                         framework, search_algorithm, validation: not measured, left out
        .invalidity      correct, compile, runtime, timeout, correctness or constraints
        .correctness     1 when the outputs agreed with the reference, 0 when they did not or were not compared
        .measurements    time (median, ms), relative error, clock (MHz) and load, as far as they are known

T4 describes one problem per file. A log holds many, so each result also says, in keys of our own, which: workload_id,
workload (as in the log), device, toolchain, template_version, stage, status, message, run.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from sparsetvm.core.record import Record, Status
from sparsetvm.log.maintenance import replace

Format = Literal["csv", "t4"]

_T4_VERSION = "1.0.0"
_INVALIDITY: dict[Status, str] = {
    "ok": "correct",
    "invalid": "constraints",
    "compile_error": "compile",
    "compile_timeout": "timeout",
    "run_error": "runtime",
    "run_timeout": "timeout",
    "crash": "runtime",
    "wrong_answer": "correctness",
    "out_of_memory": "runtime",
}
_COLUMNS = (
    "time", "workload_id", "workload", "pattern", "density", "device", "isa", "threads", "template", "version",
    "config", "stage", "status", "best_us", "error", "build_seconds", "message",
)  # fmt: skip


def export(records: Sequence[Record], out: Path | str, form: Format = "csv") -> None:
    """Write records in the given format. Raises LogError when the file cannot be written."""
    replace(Path(out), _FORMATS[form](records))


def _csv(records: Sequence[Record]) -> bytes:
    """One line each, for spreadsheets and data frames."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(_COLUMNS)
    for r in records:
        w = r.workload
        row = (
            r.time, w.id, w.describe(), w.pattern.describe(), w.pattern.density, r.device.model, r.device.isa,
            w.threads, r.config.template, r.template_version, str(r.config), r.stage, r.status,
            r.best_us if r.times_us else "", "" if r.error is None else r.error, r.build_seconds, r.message,
        )  # fmt: skip
        table.writerow([_inert(cell) for cell in row])
    return text.getvalue().encode()


def _inert(cell: object) -> object:
    """A text cell that no spreadsheet takes for a formula."""
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@") else cell


def _t4(records: Sequence[Record]) -> bytes:
    document = {"schema_version": _T4_VERSION, "results": [_t4_result(record) for record in records]}
    return msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n"


def _t4_result(record: Record) -> dict[str, Any]:
    times = {"compilation_time": record.build_seconds * 1e3, "runtimes": [us / 1e3 for us in record.times_us]}
    return {
        "timestamp": record.time,
        "configuration": {"template": record.config.template, **dict(record.config.knobs)},
        "objectives": ["time"],
        "times": times,
        "invalidity": _INVALIDITY[record.status],
        "correctness": int(record.status == "ok"),
        "measurements": _t4_measurements(record),
        "workload_id": record.workload.id,
        "workload": record.workload,
        "device": record.device,
        "toolchain": record.toolchain,
        "template_version": record.template_version,
        "stage": record.stage,
        "status": record.status,
        "message": record.message,
        "run": record.run,
    }


def _t4_measurements(record: Record) -> list[dict[str, Any]]:
    known = record.conditions
    measured = (
        ("time", record.best_us / 1e3 if record.times_us else None, "ms"),
        ("time_other_l2", None if record.other_us is None else record.other_us / 1e3, "ms"),
        ("relative_error", record.error, ""),
        ("clock", None if known is None else known.mhz, "MHz"),
        ("memory_clock", None if known is None else known.memory_mhz, "MHz"),
        ("load", None if known is None else known.load, ""),
    )
    return [{"name": name, "value": value, "unit": unit} for name, value, unit in measured if value is not None]


_FORMATS: dict[Format, Callable[[Sequence[Record]], bytes]] = {"csv": _csv, "t4": _t4}
