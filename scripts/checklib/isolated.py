"""Call a function on many items in worker processes; an item that takes its process down or hangs is one outcome.

Limits are of CPU time: on a busy machine nothing is slow.
"""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import psutil

_END = object()
_READY = "ready"
_START_SECONDS = 600  # until a process has imported the function
_STUCK = 10  # a process that waits may do so for this many times as long


@dataclass
class Outcome:
    """item: what the function was called with. result: what it returned, None when it did not.

    error: "" or the exception with its traceback, "crash: exit code -11", or "timeout: 60 s of CPU time".
    """

    item: Any
    result: Any = None
    error: str = ""


def _work(function: Callable[[Any], Any], pipe: Connection) -> None:
    pipe.send(_READY)
    while True:
        item = pipe.recv()
        if item is None:
            return
        try:
            pipe.send((function(item), ""))
        except Exception:  # every exception is an outcome of this item
            pipe.send((None, traceback.format_exc(limit=-6)))


class _Worker:
    def __init__(self, function: Callable[[Any], Any]) -> None:
        context = multiprocessing.get_context("spawn")  # TVM does not survive a fork
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(function, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.item: Any = None
        self.ready = False
        self.begun = self.cpu = 0.0

    def give(self, item: Any) -> None:
        self.item = item
        self._start_clock()
        self.pipe.send(item)

    def take(self) -> tuple[Any, str] | None:
        """What it sent: result and error, or None when it is ready to begin."""
        answer = self.pipe.recv()
        if answer == _READY:
            self.ready = True
            self._start_clock()
            return None
        result, error = answer
        return result, error

    def _start_clock(self) -> None:
        self.begun, self.cpu = time.monotonic(), self._cpu_seconds()

    def overdue(self, timeout: float) -> str:
        """Why this one is not waited for any longer, or ""."""
        if not self.ready:
            late = time.monotonic() - self.begun > _START_SECONDS
            return f"timeout: {_START_SECONDS} s until its process started" if late else ""
        if self._cpu_seconds() - self.cpu > timeout:
            return f"timeout: {timeout:.0f} s of CPU time"
        if time.monotonic() - self.begun > _STUCK * timeout:
            return f"timeout: {_STUCK * timeout:.0f} s"
        return ""

    def _cpu_seconds(self) -> float:
        try:
            used = psutil.Process(self.process.pid).cpu_times()
        except psutil.NoSuchProcess:  # it crashed: its pipe tells
            return 0.0
        return float(used.user + used.system)

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def call_isolated(
    function: Callable[[Any], Any], items: Iterable[Any], jobs: int = 1, timeout: float = 60.0
) -> Iterator[Outcome]:
    """Outcomes as they come. function: importable by name, in a module that a fresh process can import.

    items: taken one by one, each when a worker is free. timeout: seconds of CPU time for one item.
    """
    waiting, more, busy, idle = iter(items), True, [], []
    try:
        while more or busy:
            while more and len(busy) < jobs:
                item = next(waiting, _END)
                if item is _END:
                    more = False
                    break
                worker = idle.pop() if idle else _Worker(function)
                worker.give(item)
                busy.append(worker)
            ready = wait([worker.pipe for worker in busy], timeout=1.0)
            for worker in list(busy):
                error = ""
                if worker.pipe in ready:
                    try:
                        answer = worker.take()
                        if answer is not None:
                            busy.remove(worker)
                            idle.append(worker)
                            yield Outcome(worker.item, *answer)
                        continue
                    except EOFError:
                        worker.process.join()
                        error = f"crash: exit code {worker.process.exitcode}"
                else:
                    error = worker.overdue(timeout)
                if error:
                    busy.remove(worker)
                    worker.stop()
                    yield Outcome(worker.item, None, error)
    finally:
        for worker in busy + idle:
            worker.stop()
