"""One task of a tune on a fleet: its builders, its weights, and what has become of its jobs."""

from __future__ import annotations

import contextlib
import os
import queue
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparsetvm.core.config import Config
from sparsetvm.core.target import Target
from sparsetvm.core.task import Task
from sparsetvm.measure.builders import Builders, Library
from sparsetvm.measure.fleet_link import Job, Outcome
from sparsetvm.measure.fleet_protocol import RemoteLibrary, RemoteRetime, RemoteRun, library_message, task_message
from sparsetvm.measure.process import ForkServer, TaskServer, WorkerProcess, write_task
from sparsetvm.search.trial import Measured

_ATTEMPTS = 3
_ROUND_SECONDS = 60.0  # of a job, for each of its libraries, beside what follows
_NICE = 10  # of builders: workers of this host, whose times count, go first
_JOB_SECONDS = 180.0  # of a job: a worker that must import TVM and compute references first, on a busy machine

Built = tuple[int, Library | Measured]


@dataclass
class _Open:
    """A job that is not done, and how often a worker was lost with it."""

    job: Job
    lost: int = 0
    reasons: list[str] = field(default_factory=list)


class Lane:
    """Builds and sends out the configs of one task; used by one thread at a time.

    server, forking: what processes are forked from, and the lock that keeps it to one thread. put: a job for any
    worker. told: of workers that were lost.
    """

    def __init__(
        self,
        task: Task,
        target: Target,
        server: ForkServer,
        forking: threading.Lock,
        *,
        repeats: int,
        seed: int,
        build_timeout: float,
        put: Callable[[Job], None],
        told: Callable[[str], None],
    ) -> None:
        self.task, self.id = task, uuid.uuid4().hex
        self.outcomes: queue.Queue[Outcome] = queue.Queue()
        self._put, self._told, self._build_timeout = put, told, build_timeout
        self._opened: dict[int, _Open] = {}
        self._message = task_message(task, target, repeats, seed)
        self._home = tempfile.TemporaryDirectory(prefix="sparsetvm-fleet-")
        request = write_task(task, target, Path(self._home.name), seed, check=False)
        with forking:
            self._tasks: TaskServer = server.open_task(request)

    def close(self) -> None:
        """Stop its processes."""
        self._tasks.close()
        self._home.cleanup()

    @property
    def waits(self) -> bool:
        """Whether a job is not done."""
        return bool(self._opened)

    def start_builders(self, configs: Sequence[Config], jobs: int) -> queue.Queue[Built | BaseException | None]:
        """Build in a thread: what is built, what builders raise, and None at the end."""
        built: queue.Queue[Built | BaseException | None] = queue.Queue()

        def run() -> None:
            try:
                for item in self.build(configs, jobs):
                    built.put(item)
            except BaseException as problem:
                built.put(problem)
            built.put(None)

        threading.Thread(target=run, daemon=True, name="fleet builders").start()
        return built

    def build(self, configs: Sequence[Config], jobs: int) -> Iterator[Built]:
        """Yield (index, what became of the config) as each is built, `jobs` at a time."""
        folder = Path(self._home.name, "candidates")
        yield from Builders(self._spawn, jobs, self._build_timeout, folder).build(configs)

    def run(self, index: int, config: Config, library: Library) -> None:
        """Let any worker check and time a library."""
        self._send(index, RemoteRun(self.id, remote(config, library)), 1)

    def retime(self, libraries: Sequence[RemoteLibrary], rounds: int) -> None:
        """Let any worker time libraries side by side."""
        self._send(0, RemoteRetime(self.id, tuple(libraries), rounds), len(libraries))

    def settled(self, seconds: float) -> list[Outcome]:
        """Jobs that are done, after waiting that long for one; those whose worker was lost wait for another."""
        found = []
        for outcome in taken(self.outcomes, seconds):
            mine = self._opened.get(outcome.job.index)
            if mine is None or mine.job is not outcome.job:
                continue  # of a link that was given up: another one has the job
            settled = self._judged(mine, outcome)
            if settled is not None:
                del self._opened[outcome.job.index]
                found.append(settled)
        return found

    def _send(self, index: int, request: RemoteRun | RemoteRetime, libraries: int) -> None:
        job = Job(index, request, self._message, _JOB_SECONDS + _ROUND_SECONDS * libraries, self.outcomes)
        self._opened[index] = _Open(job)
        self._put(job)

    def _judged(self, mine: _Open, outcome: Outcome) -> Outcome | None:
        """The outcome that counts, None where another worker shall try."""
        if not outcome.lost:
            return outcome
        mine.lost += 1
        mine.reasons.append(outcome.lost)
        self._told(f"a worker was lost: {outcome.lost}")
        if mine.lost >= _ATTEMPTS:
            return Outcome(outcome.job, _crashed(outcome.job, mine.reasons))
        mine.job = mine.job.again()
        self._put(mine.job)
        return None

    def _spawn(self) -> WorkerProcess:
        worker = self._tasks.spawn(memory_limit=0, pin=False)
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, worker.pid, max(_NICE, os.getpriority(os.PRIO_PROCESS, 0)))
        return worker


def remote(config: Config, library: Library) -> RemoteLibrary:
    """A library as a worker gets it."""
    return library_message(config, library.files(), library.path.stem, library.seconds)


def taken(source: queue.Queue[Any], seconds: float) -> list[Any]:
    """All that is there, after waiting that long for the first."""
    found: list[Any] = []
    try:
        found.append(source.get(timeout=seconds) if seconds else source.get_nowait())
        while True:
            found.append(source.get_nowait())
    except queue.Empty:
        return found


def _crashed(job: Job, reasons: Sequence[str]) -> tuple[Measured, ...]:
    """The results of a job that took several workers down."""
    request = job.request
    libraries = (request.library,) if isinstance(request, RemoteRun) else request.libraries
    message = f"{len(reasons)} workers were lost while they measured it: {reasons[-1]}"
    return tuple(Measured(config=library.config, status="crash", message=message) for library in libraries)
