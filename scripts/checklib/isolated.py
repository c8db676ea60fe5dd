"""Call a function on many items in worker processes; an item that takes its process down or hangs is one outcome."""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any


@dataclass
class Outcome:
    """item: what the function was called with. result: what it returned, None when it did not.

    error: "" or the exception with its traceback, "crash: exit code -11", or "timeout: 60 s".
    """

    item: Any
    result: Any = None
    error: str = ""


def _work(function: Callable[[Any], Any], pipe: Connection) -> None:
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
        self.begun = 0.0

    def give(self, item: Any) -> None:
        self.item, self.begun = item, time.monotonic()
        self.pipe.send(item)

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def call_isolated(
    function: Callable[[Any], Any], items: Sequence[Any], jobs: int = 1, timeout: float = 60.0
) -> Iterator[Outcome]:
    """Outcomes as they come. function: importable by name, in a module that a fresh process can import.

    timeout: seconds for one item; the import of `function` counts into the first of each process.
    """
    waiting, busy, idle = list(reversed(items)), [], []
    try:
        while waiting or busy:
            while waiting and len(busy) < jobs:
                worker = idle.pop() if idle else _Worker(function)
                worker.give(waiting.pop())
                busy.append(worker)
            ready = wait([worker.pipe for worker in busy], timeout=1.0)
            for worker in list(busy):
                error = ""
                if worker.pipe in ready:
                    try:
                        result, error = worker.pipe.recv()
                        busy.remove(worker)
                        idle.append(worker)
                        yield Outcome(worker.item, result, error)
                        continue
                    except EOFError:
                        worker.process.join()
                        error = f"crash: exit code {worker.process.exitcode}"
                elif time.monotonic() - worker.begun > timeout:
                    error = f"timeout: {timeout:.0f} s"
                if error:
                    busy.remove(worker)
                    worker.stop()
                    yield Outcome(worker.item, None, error)
    finally:
        for worker in busy + idle:
            worker.stop()
