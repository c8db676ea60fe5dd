"""Care of tuning logs: check and repair, merge, list."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from sparsetvm.core.files import write_whole
from sparsetvm.core.record import Record
from sparsetvm.core.workload import Workload
from sparsetvm.errors import LogError
from sparsetvm.log.journal import Entry, scan, sync_folder
from sparsetvm.log.location import Source, expand
from sparsetvm.log.lock import rewriting
from sparsetvm.log.relation import Relation
from sparsetvm.log.standing import standings


@dataclass
class CheckReport:
    """One log file. bad: (line number, reason); backup: where the old file is kept after a repair."""

    path: Path
    records: int = 0
    duplicates: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    bad: list[tuple[int, str]] = field(default_factory=list)
    backup: Path | None = None


@dataclass(frozen=True)
class LogRow:
    """One task on one device, for `log ls`. config, best_us, stage: of the best trial, None and "" when none succeeded.

    count, failed: trials and failed trials; newest: time of the last one, ISO 8601, "" when unknown.
    """

    workload_id: str
    workload: Workload
    device: str
    config: str
    best_us: float | None
    stage: str
    count: int
    failed: int
    newest: str


def check(path: Path | str, repair: bool = False) -> list[CheckReport]:
    """Read every line of a log, or of all logs in a folder.

    repair: rewrite files with bad or repeated lines without them; the old file stays beside it as .bak (.bak2, ...).
    Raises LogError when a file cannot be read, was written by a newer version, or cannot be rewritten.
    """
    return [_repair(file) if repair else _check(file)[0] for file in expand([path])]


def _check(path: Path) -> tuple[CheckReport, list[bytes]]:
    report, good, seen = CheckReport(path), [], set()
    for item in scan(path):
        if not isinstance(item, Entry):
            report.bad.append(item)
            continue
        report.records += 1
        report.statuses[item.record.status] = report.statuses.get(item.record.status, 0) + 1
        if item.sum in seen:
            report.duplicates += 1
        else:
            seen.add(item.sum)
            good.append(item.raw)
    return report, good


def _repair(path: Path) -> CheckReport:
    with rewriting(path):
        report, good = _check(path)
        if report.bad or report.duplicates:
            try:
                report.backup = keep(path)
            except OSError as error:
                raise LogError(f"cannot keep a copy of {path}: {error.strerror or error}") from error
            replace(path, b"".join(line + b"\n" for line in good))
    return report


def keep(path: Path) -> Path:
    """A hard link (or copy) of the file under a free .bak name."""
    number = 1
    while (backup := path.with_name(f"{path.name}.bak{number if number > 1 else ''}")).exists():
        number += 1
    try:
        os.link(path, backup)
    except OSError:
        content = path.read_bytes()
        write_whole(backup, lambda file: file.write(content), durable=True)
    return backup


def replace(path: Path, data: bytes) -> None:
    """Write the file in one step: readers see the old content or the new, never a part."""
    try:
        write_whole(path, lambda file: file.write(data), durable=True)
        sync_folder(path.parent)
    except OSError as error:
        raise LogError(f"cannot write {path}: {error.strerror or error}", hint="choose another output file") from error


@dataclass(frozen=True)
class MergeReport:
    """records: how many the output holds. skipped: lines of the inputs that could not be read, by file."""

    records: int
    skipped: dict[Path, int]


def merge(paths: Sequence[Path | str], out: Path | str) -> MergeReport:
    """Merge logs (files or folders) into `out`, each record once.

    Records that `out` holds already are kept. The result does not depend on the order of `paths`, and merging again
    changes nothing. Raises LogError like `check`.
    """
    out = Path(out)
    lines: dict[str, tuple[str, bytes]] = {}
    skipped: dict[Path, int] = {}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LogError(f"cannot write {out}: {error.strerror or error}", hint="choose another output file") from error
    with rewriting(out):
        for path in expand([*paths, out] if out.exists() else paths):
            for item in scan(path):
                if isinstance(item, Entry):
                    line = (item.record.time, item.raw)
                    lines[item.sum] = min(line, lines.get(item.sum, line))
                else:
                    skipped[path] = skipped.get(path, 0) + 1
        ordered = sorted((time, key, raw) for key, (time, raw) in lines.items())
        replace(out, b"".join(raw + b"\n" for _, _, raw in ordered))
    return MergeReport(len(lines), skipped)


@dataclass(frozen=True)
class Plain:
    """A record as `standings` takes it."""

    record: Record
    source: Source = "log"


def list_records(records: Sequence[Record]) -> list[LogRow]:
    """One row per task and device, in the order of first appearance."""
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        groups[record.workload.id, record.device.model].append(record)
    return [_row(workload_id, device, members) for (workload_id, device), members in groups.items()]


def _row(workload_id: str, device: str, records: list[Record]) -> LogRow:
    usable = [s for s in standings(map(Plain, records), Relation("exact")) if not s.failure]
    best = min(usable, key=lambda s: s.score).known.record if usable else None
    return LogRow(
        workload_id,
        records[0].workload,
        device,
        str(best.config) if best else "",
        best.best_us if best else None,
        best.stage if best else "",
        len(records),
        sum(r.status != "ok" for r in records),
        max(r.time for r in records),
    )


def age(time: str, now: datetime | None = None) -> str:
    """How long ago an ISO 8601 time was, in words: "just now", "5 min", "3 h", "12 d"; "" when it is no such time."""
    try:
        then = datetime.fromisoformat(time.replace("Z", "+00:00"))
    except ValueError:
        return ""
    if then.tzinfo is None:
        then = then.replace(tzinfo=timezone.utc)
    seconds = ((now or datetime.now(timezone.utc)) - then).total_seconds()
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return "just now"
