"""Files that appear whole or not at all: a full disk or a killed process leaves the old file, and nothing beside it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

_MODE = 0o644


def write_whole(path: str | Path, write: Callable[[BinaryIO], object], *, durable: bool = False) -> None:
    """Write a file through `write(stream)` and give it its name when all of it is there.

    durable: flush it to the disk first. A path that is no regular file (a pipe, /dev/stdout) is written as it is.
    Raises OSError.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        with path.open("wb") as stream:
            write(stream)
        return
    path = path.resolve()  # a link stays one
    mode = path.stat().st_mode & 0o777 if path.exists() else _MODE
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            write(stream)
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
