"""The writers' lock of a tuning log: flock on a file beside it, which the kernel releases when its owner dies.

Some network file systems have no locks. There each writer appends to a file of its own, see `journal`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sparsetvm.errors import LogError

LOCK_SECONDS = 60.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.0005, 0.02
_HELD = {errno.EACCES, errno.EAGAIN}
_MISSING = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS}


class NoLocks(Exception):
    """The file system of the log cannot lock files."""


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the writers' lock of the log `path`.

    Raises NoLocks, or LogError when the lock cannot be had within a minute or not at all.
    """
    try:
        descriptor = _acquire(Path(f"{path}.lock"), path)
    except OSError as error:
        raise LogError(
            f"cannot lock {path}: {error.strerror or error}",
            hint="choose a writable folder with --log-dir DIR or SPARSETVM_LOG_DIR",
        ) from error
    try:
        yield
    finally:
        os.close(descriptor)  # releases the lock


@contextmanager
def rewriting(path: Path) -> Iterator[None]:
    """Hold the lock to rewrite the whole log. Raises LogError when that cannot be done safely."""
    try:
        with locked(path):
            yield
    except NoLocks:
        raise LogError(
            f"{path} cannot be locked: its file system has no locks", hint="work on a copy on a local disk"
        ) from None


def _acquire(lock: Path, path: Path) -> int:
    deadline, pause = time.monotonic() + LOCK_SECONDS, _FIRST_PAUSE
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is(descriptor, lock):
                return descriptor
        except OSError as error:
            if error.errno in _MISSING:
                os.close(descriptor)
                raise NoLocks(str(path)) from error
            if error.errno not in _HELD:
                os.close(descriptor)
                raise
        os.close(descriptor)
        if time.monotonic() > deadline:
            raise LogError(f"{path} is locked by another process", hint="wait for it to end, then try again")
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _is(descriptor: int, path: Path) -> bool:
    """True while the open file is the one of that name: somebody may have deleted it since."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
