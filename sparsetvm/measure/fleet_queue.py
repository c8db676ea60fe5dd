"""Jobs of a tune that wait for workers. Several tasks may be open; a worker keeps to the one that it has.

A worker that changes tasks gets other weights, computes another reference and starts a process: half a second, for
trials that take a twentieth. So tasks share the workers, and a worker whose task has nothing to measure right now waits
a while before it helps another one.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque

from sparsetvm.measure.fleet_link import Job

_IDLE_SECONDS = 1.5  # of a worker before it helps another task: what builders take for a round


class JobQueue:
    """Jobs by task, oldest first. Safe for threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: dict[str, deque[Job]] = {}
        self._open: set[str] = set()
        self._served: Counter[str] = Counter()

    def open(self, task: str) -> None:
        """Jobs of the task will come."""
        with self._changed:
            self._open.add(task)

    def close(self, task: str) -> None:
        """No more jobs of the task will come, and those that wait are dropped: its workers are free for others."""
        with self._changed:
            self._open.discard(task)
            self._waiting.pop(task, None)
            self._changed.notify_all()

    def put(self, job: Job) -> None:
        """Add a job of an open task."""
        with self._changed:
            self._waiting.setdefault(job.request.task_id, deque()).append(job)
            self._changed.notify_all()

    def take(self, has: str, seconds: float, idle: float = 0.0) -> Job | None:
        """The next job for a worker that has the task `has` ("": none), None when there is none for that long.

        idle: seconds that the worker has been without a job.
        """
        began = time.monotonic()
        with self._changed:
            while (task := self._choice(has, idle + time.monotonic() - began)) is None:
                left = began + seconds - time.monotonic()
                if left <= 0:
                    return None
                self._changed.wait(left)
            jobs = self._waiting[task]
            job = jobs.popleft()
            if not jobs:
                del self._waiting[task]
            self._move(has, task)
            return job

    def leave(self, has: str) -> None:
        """A worker that had the task is gone."""
        with self._changed:
            self._move(has, "")

    def _move(self, before: str, now: str) -> None:
        if before != now:
            self._served[before] -= 1
            self._served[now] += 1

    def _choice(self, has: str, idle: float) -> str | None:
        most = sorted(self._waiting, key=lambda task: -len(self._waiting[task]) / (1 + self._served[task]))
        alone = [task for task in most if not self._served[task]]
        if has in self._waiting and not (alone and self._served[has] > 1):
            return has
        if alone:
            return alone[0]
        wanted = has in self._open or any(not self._served[task] for task in self._open)
        return most[0] if most and (idle >= _IDLE_SECONDS or not wanted) else None
