"""Tuning logs on disk: one append-only JSONL file per device model, any number of writers.

A record is appended under a file lock and flushed to the disk before `append` returns. A torn tail (power cut, full
disk) costs one line: the next writer starts on a fresh one, and readers skip and count what they cannot read.

Where the file system has no locks each writer appends to a file of its own, `NAME.writer-ID.jsonl` beside `NAME.jsonl`.
Readers take all files of a folder, and `NAME.jsonl` stands for its writers' files too (`location`).
"""

from __future__ import annotations

import errno
import functools
import os
import re
import tempfile
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from sparsetvm.core.folders import NO_HOME
from sparsetvm.core.record import SCHEMA_VERSION, Record
from sparsetvm.core.target import DeviceFingerprint
from sparsetvm.errors import LogError
from sparsetvm.log.line import MAX_LINE, BadLine, NewerSchema, decode_line, encode_line
from sparsetvm.log.lock import NoLocks, locked

WRITER = ".writer-"  # in the name of a writer's own file
_ATTEMPTS = 5
_ELSEWHERE = "choose a writable folder with --log-dir DIR or SPARSETVM_LOG_DIR"


@dataclass(frozen=True)
class Entry:
    """A good line: its number (from 1), its bytes without the newline, the checksum and the record."""

    number: int
    raw: bytes
    sum: str
    record: Record


@dataclass
class ReadResult:
    """What a log holds: records in file order, and (line number, reason) of each line that was skipped."""

    records: list[Record] = field(default_factory=list)
    bad: list[tuple[int, str]] = field(default_factory=list)


def journal_path(folder: Path, device: DeviceFingerprint) -> Path:
    """The file in `folder` for this device model, e.g. cpu-amd-epyc-9334-32-core-processor-family-25-model-17.jsonl."""
    slug = re.sub(r"[^a-z0-9]+", "-", device.model.lower()).strip("-")[:80].strip("-")
    return Path(folder) / f"{device.kind}-{slug or 'unknown'}.jsonl"


def check_writable(folder: Path) -> None:
    """Make the folder if need be and prove that it can be written. Raises LogError with the next step."""
    if Path(folder).is_relative_to(NO_HOME):
        raise LogError("this user has no home folder for tuning logs", hint="name one with --log-dir DIR, or set HOME")
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise LogError(f"cannot write tuning logs to {folder}: {error.strerror or error}", hint=_ELSEWHERE) from error


def append(path: Path, *records: Record) -> Path:
    """Append records, flush them to the disk and return the file that holds them: `path` or this writer's own.

    Raises LogError when the log cannot be written, ValueError for a record that could not be read back (a time that is
    not positive, for instance).
    """
    path, data = Path(path), b"".join(map(encode_line, records))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with locked(path):
                _write(path, data)
        except NoLocks:
            path = writer_path(path)
            # A `log compact` may take the file away between opening and writing; then it has to be written again.
            if not any(_write(path, data) for _ in range(_ATTEMPTS)):
                raise LogError(f"{path} vanishes while it is written", hint=_ELSEWHERE) from None
    except OSError as error:
        raise LogError(f"cannot append to {path}: {error.strerror or error}", hint=_ELSEWHERE) from error
    return path


def writer_path(path: Path) -> Path:
    """The own file of this thread of this process beside the log `path`."""
    return path.with_name(f"{path.stem}{WRITER}{_writer_id(os.getpid(), threading.get_ident())}{path.suffix}")


@functools.cache
def _writer_id(process: int, thread: int) -> str:
    """No two writers have the same, on any machine, not even forks of one process."""
    return uuid.uuid4().hex[:16]


def _write(path: Path, data: bytes) -> bool:
    """Append to the file on the disk; False when it was renamed or deleted meanwhile."""
    new = not path.exists()
    with open(path, "ab+", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            data = data if file.read(1) == b"\n" else b"\n" + data
        left = memoryview(data)
        while left:
            left = left[file.write(left) :]
        os.fsync(file.fileno())
        if new:
            sync_folder(path.parent)
        try:
            return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
        except FileNotFoundError:
            return False


def sync_folder(folder: Path) -> None:
    """Make the names in a folder last: without it a power cut may take a new file away, however well it was flushed."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # file systems that cannot, and need not
            raise
    finally:
        os.close(descriptor)


def read_records(path: Path) -> ReadResult:
    """All records of a log, and what was skipped. Raises LogError as `scan` does."""
    result = ReadResult()
    for item in scan(path):
        if isinstance(item, Entry):
            result.records.append(item.record)
        else:
            result.bad.append(item)
    return result


def scan(path: Path) -> Iterator[Entry | tuple[int, str]]:
    """Each line of a log in order: an Entry, or (line number, reason) when it must be skipped. Blank lines are ignored.

    Raises LogError when the file cannot be read or was written by a newer version.
    """
    try:
        if not Path(path).is_file():
            raise LogError(f"no tuning log at {path}", hint="give a .jsonl file or a folder with such files")
        with open(path, "rb") as file:
            for number, raw in enumerate(_lines(file), 1):
                if raw is None:
                    yield number, f"longer than {MAX_LINE >> 20} MB"
                elif raw.strip():
                    yield _entry(path, number, raw)
    except OSError as error:
        raise LogError(f"cannot read {path}: {error.strerror or error}") from error


def _entry(path: Path, number: int, raw: bytes) -> Entry | tuple[int, str]:
    try:
        return Entry(number, raw, *decode_line(raw))
    except BadLine as bad:
        return number, str(bad)
    except NewerSchema as newer:
        raise LogError(
            f"{path} line {number} has schema {newer.schema}, this version reads up to {SCHEMA_VERSION}",
            hint="update sparsetvm, or use another folder with --log-dir DIR",
        ) from None


def _lines(file: BinaryIO) -> Iterator[bytes | None]:
    """Lines without their newline; None stands for one that is too long, which is never held in memory as a whole."""
    while line := file.readline(MAX_LINE + 2):
        if line.endswith(b"\n") or len(line) <= MAX_LINE:
            yield line.rstrip(b"\r\n")
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE)
        yield None
