"""Where tuning logs live, and in which order they are looked up.

Writing: --log-dir, else SPARSETVM_LOG_DIR, else `tuning_logs/` of the current folder if there is one, else the user's
state folder (not the cache: a cleaner must not delete hours of measuring).
Reading: --records, the log folder, SPARSETVM_RECORDS, the records shipped in the package.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

from sparsetvm.core.folders import state_folder
from sparsetvm.errors import LogError
from sparsetvm.log.journal import WRITER
from sparsetvm.settings import read_settings

Source = Literal["records", "log", "shipped"]


@dataclass(frozen=True)
class LogFile:
    """A log to read. source: "records" (--records, SPARSETVM_RECORDS), "log" (the log folder) or "shipped"."""

    path: Path
    source: Source


def log_dir(explicit: Path | str | None = None) -> Path:
    """The folder that logs are written to; it need not exist yet."""
    if explicit is not None:
        return Path(explicit).expanduser()
    configured = read_settings().log_dir
    if configured is not None:
        return configured
    project = Path("tuning_logs")
    if project.is_dir():
        return project
    return state_folder() / "tuning_logs"


def log_files(folder: Path | None, extra: Sequence[Path | str] = (), *, shipped: bool = True) -> list[LogFile]:
    """All logs to read, in look-up order, each file once; `folder` None leaves the log folder out.

    Raises LogError for a path in `extra` or SPARSETVM_RECORDS that does not exist.
    """
    found: list[LogFile] = []
    for path in extra:
        found += _expand(Path(path).expanduser(), "records", "--records")
    if folder is not None and folder.is_dir():
        found += [LogFile(p, "log") for p in _journals(folder)]
    for path in read_settings().records:
        found += _expand(path, "records", "SPARSETVM_RECORDS")
    if shipped:
        found += [LogFile(p, "shipped") for p in shipped_logs()]
    unique: dict[Path, LogFile] = {}
    for file in found:
        unique.setdefault(file.path.resolve(), file)
    return list(unique.values())


def expand(paths: Sequence[Path | str]) -> list[Path]:
    """Log files named by files and folders, each once; a file brings those of its writers along.

    Raises LogError for a path that does not exist.
    """
    files = [f.path for path in paths for f in _expand(Path(path).expanduser(), "records", "argument")]
    return list(dict.fromkeys(files))


@functools.cache
def shipped_logs() -> tuple[Path, ...]:
    """Logs that came with the package; none when it runs from an archive."""
    folder = resources.files("sparsetvm.tuning_logs")
    paths = [Path(str(item)) for item in folder.iterdir() if item.name.endswith(".jsonl")]
    return tuple(sorted(path for path in paths if path.is_file()))


def _expand(path: Path, source: Source, where: str) -> list[LogFile]:
    if path.is_dir():
        return [LogFile(p, source) for p in _journals(path)]
    files = [p for p in (path, *writers_files(path)) if p.is_file()]
    if not files:
        raise LogError(f"{where}: no tuning log at {path}", hint="give a .jsonl file or a folder with such files")
    return [LogFile(p, source) for p in files]


def writers_files(path: Path) -> list[Path]:
    """The files of writers that could not lock the log `path`."""
    return [p for p in _journals(path.parent) if p.name.startswith(f"{path.stem}{WRITER}")]


def _journals(folder: Path) -> list[Path]:
    try:
        return sorted(p for p in folder.glob("*.jsonl") if p.is_file())
    except OSError as error:
        raise LogError(f"cannot read {folder}: {error.strerror or error}") from error
