"""Compaction of tuning logs: one file per device, without what no decision depends on.

Kept of each config on each task (device, versions and space alike): all results of final rounds and checks, and of the
search the last failure, the last success and the fastest one. That is all that `standing` looks at, so every decision
stays what it was; what goes are further search timings of the same config.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sparsetvm.core.record import Record
from sparsetvm.errors import LogError
from sparsetvm.log.journal import WRITER, Entry, scan
from sparsetvm.log.location import expand, writers_files
from sparsetvm.log.lock import rewriting
from sparsetvm.log.maintenance import keep, replace

_FOLDED = ".folded"


@dataclass(frozen=True)
class CompactReport:
    """One log. before, after: its records, those of its writers' files included. bad: lines that were dropped.

    backups: the old files, empty when nothing was to be done.
    """

    path: Path
    before: int
    after: int
    bad: int
    backups: tuple[Path, ...]


def compact(path: Path | str) -> list[CompactReport]:
    """Compact a log, or all logs in a folder; the old files stay beside them as .bak.

    Raises LogError when a file cannot be read, was written by a newer version, or cannot be locked or rewritten.
    """
    return [_compact(log) for log in dict.fromkeys(map(_log_of, expand([path])))]


def _log_of(path: Path) -> Path:
    """The log that a file of one of its writers belongs to."""
    stem, found, _ = path.name.partition(WRITER)
    return path.with_name(f"{stem}{path.suffix}") if found else path


def _compact(log: Path) -> CompactReport:
    try:
        with rewriting(log):
            # A writer that has its file open notices that the name is gone and appends once more to a new one.
            folded = [_fold(file) for file in writers_files(log)]
            old = [log] if log.is_file() else []
            entries, bad = _read([*old, *folded])
            kept = _needed(entries)
            if not (folded or bad or len(kept) < len(entries)):
                return CompactReport(log, len(entries), len(kept), bad, ())
            backups = tuple(map(keep, [*old, *folded]))
            replace(log, b"".join(entry.raw + b"\n" for entry in kept))
            for file in folded:
                file.unlink()
            return CompactReport(log, len(entries), len(kept), bad, backups)
    except OSError as error:
        raise LogError(f"cannot compact {log}: {error.strerror or error}") from error


def _fold(file: Path) -> Path:
    """Give a writer's file another name, under which it is still read should this process end."""
    if file.stem.endswith(_FOLDED):
        return file
    renamed = file.with_name(f"{file.stem}{_FOLDED}{file.suffix}")
    if renamed.exists():  # an earlier compaction was cut short
        renamed = file.with_name(f"{file.stem}-{os.getpid()}{_FOLDED}{file.suffix}")
    return file.rename(renamed)


def _read(files: Iterable[Path]) -> tuple[list[Entry], int]:
    """The entries of all files, and how many bad lines there are."""
    items = [item for file in files for item in scan(file)]
    entries = [item for item in items if isinstance(item, Entry)]
    return entries, len(items) - len(entries)


def _needed(entries: list[Entry]) -> list[Entry]:
    """Entries that some decision may depend on, each once, in their order."""
    distinct: dict[str, Entry] = {}
    for entry in entries:
        distinct.setdefault(entry.sum, entry)
    groups: dict[object, list[Entry]] = defaultdict(list)
    ids: dict[object, str] = {}
    for entry in distinct.values():
        r = entry.record
        workload = ids.get(r.workload) or ids.setdefault(r.workload, r.workload.id)
        groups[workload, r.config, r.device, r.toolchain, r.template_version, r.space].append(entry)
    needed = {entry.sum for group in groups.values() for entry in _of_config(group)}
    return [entry for entry in distinct.values() if entry.sum in needed]


def _of_config(group: list[Entry]) -> list[Entry]:
    kept = [entry for entry in group if _retimed(entry.record)]
    searched = [entry for entry in group if not _retimed(entry.record)]
    good = [entry for entry in searched if entry.record.status == "ok"]
    failed = [entry for entry in searched if entry.record.status != "ok"]
    kept += [max(some, key=lambda e: (e.record.time, -e.record.best_us)) for some in (good, failed) if some]
    return [*kept, min(good, key=lambda e: e.record.best_us)] if good else kept


def _retimed(record: Record) -> bool:
    return record.stage != "search"
