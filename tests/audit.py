"""What Python code opens, imports, executes or starts while a call runs, as the interpreter's audit events tell it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_listeners: list[list[tuple[str, tuple[Any, ...]]]] = []
_NAMES = ("open", "import", "exec", "compile", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "os.fork")
_MORE = ("ctypes.dlopen", "socket.connect", "os.putenv", "os.unsetenv", "pickle.find_class", "marshal.loads")


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _listeners and event in (*_NAMES, *_MORE):
        for listener in _listeners:
            listener.append((event, arguments))


sys.addaudithook(_hook)  # one for the whole process: hooks cannot be taken away


@contextmanager
def audited() -> Iterator[list[tuple[str, tuple[Any, ...]]]]:
    """The events of the block, as (name, arguments)."""
    events: list[tuple[str, tuple[Any, ...]]] = []
    _listeners.append(events)
    try:
        yield events
    finally:
        _listeners.remove(events)


def opened(events: list[tuple[str, tuple[Any, ...]]]) -> list[tuple[str, int]]:
    """(path, flags) of every file that was opened by name."""
    return [(str(a[0]), int(a[2] or 0)) for name, a in events if name == "open" and not isinstance(a[0], int)]
