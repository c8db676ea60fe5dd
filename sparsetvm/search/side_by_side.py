"""Measurements of several tasks at once, for a measurer that has several devices.

Each runs in a thread; what it finds is handed out in the thread that owns the search, one event after the other, so
that the search itself needs no locks.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sparsetvm.core.config import Config
from sparsetvm.core.task import Task
from sparsetvm.search.trial import Measured, Measurer


@dataclass(frozen=True)
class Finding:
    """A result of the task `at`, or with `all` the end of its measurement: all results, in the order of the configs."""

    at: int
    result: Measured | None = None
    all: tuple[Measured, ...] | None = None


class SideBySide:
    """Runs `measure` and `retime` of a measurer for several tasks, each known by a number. Not thread-safe itself."""

    def __init__(self, measurer: Measurer) -> None:
        self._measurer = measurer
        self._found: queue.Queue[Finding | BaseException] = queue.Queue()
        self._running: set[int] = set()

    def __len__(self) -> int:
        return len(self._running)

    def __contains__(self, at: int) -> bool:
        return at in self._running

    def measure(self, at: int, task: Task, configs: Sequence[Config]) -> None:
        """Start a measurement; its findings are one for each config and the end."""

        def note(result: Measured) -> None:
            self._found.put(Finding(at, result))

        self._start(at, lambda: self._measurer.measure(task, configs, note))

    def retime(self, at: int, task: Task, configs: Sequence[Config], rounds: int) -> None:
        """Start to time configs side by side; all that is found is the end."""
        self._start(at, lambda: self._measurer.retime(task, configs, rounds))

    def next(self) -> Finding:
        """What is found next. Raises what a measurement raised; the others are then still running."""
        found = self._found.get()
        if isinstance(found, BaseException):
            raise found
        if found.all is not None:
            self._running.discard(found.at)
        return found

    def _start(self, at: int, work: Callable[[], list[Measured]]) -> None:
        def run() -> None:
            try:
                self._found.put(Finding(at, all=tuple(work())))
            except BaseException as problem:
                self._found.put(problem)

        self._running.add(at)
        # A daemon: what hangs on a device must not keep a tune that was interrupted.
        threading.Thread(target=run, daemon=True, name=f"task {at}").start()
