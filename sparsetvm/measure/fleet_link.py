"""One connection of a tune to one worker of a fleet, and what the tracker says."""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import msgspec

from sparsetvm.core.version import VERSION
from sparsetvm.errors import EnvironmentProblem
from sparsetvm.measure.fleet_protocol import (
    HELLO,
    MEASURE,
    PROTOCOL,
    Answer,
    Hello,
    RemoteRetime,
    RemoteRun,
    RemoteTask,
)
from sparsetvm.search.trial import Measured

_TAKE_SECONDS = 0.2
_RETRY_SECONDS = 1.0
_REFUSED_SECONDS = 10.0
_TRACKER_SECONDS = 10.0


@dataclass(frozen=True, eq=False)
class Job:
    """A request for any worker; `seconds` after which a worker that has it is given up. Compared by identity.

    outcomes: where what becomes of it is put.
    """

    index: int
    request: RemoteRun | RemoteRetime
    task: RemoteTask
    seconds: float
    outcomes: queue.Queue[Outcome]

    def again(self) -> Job:
        """The same request as a job of its own."""
        return replace(self)


@dataclass(frozen=True)
class Outcome:
    """What became of a job: its results, or why the worker that had it is lost."""

    job: Job
    results: tuple[Measured, ...] = ()
    lost: str = ""


class Jobs(Protocol):
    """Where a link takes its jobs from: fleet_queue.JobQueue."""

    def take(self, has: str, seconds: float, idle: float = 0.0) -> Job | None:
        """The next job for a worker that has the task `has`."""
        ...

    def leave(self, has: str) -> None:
        """A worker that had the task is gone."""
        ...


class Tracker:
    """A TVM tracker and the key of the workers that are wanted. Raises EnvironmentProblem when it does not answer."""

    def __init__(self, host: str, port: int, key: str) -> None:
        self.host, self.port, self.key = host, port, key
        try:
            with socket.create_connection((host, port), _TRACKER_SECONDS):
                pass
        except OSError as problem:
            raise EnvironmentProblem(
                f"no tracker answers at {self.address}: {problem.strerror or problem}",
                hint=f"start one: python -m tvm.exec.rpc_tracker --host {host} --port {port}",
            ) from problem

    @property
    def address(self) -> str:
        """host:port."""
        return f"{self.host}:{self.port}"

    def session(self) -> Any:
        """A connection to it, for one thread."""
        from tvm.rpc.client import TrackerSession

        return TrackerSession((self.host, self.port))

    def count(self) -> int:
        """How many workers of the key are there, busy ones too; 0 when the tracker does not answer."""
        try:
            session = self.session()
            try:
                servers = session.summary()["server_info"]
            finally:
                session.close()
        except (OSError, RuntimeError, ValueError, KeyError):
            return 0
        return sum(server.get("key") == f"server:{self.key}" for server in servers)


class Link(threading.Thread):
    """Takes jobs from `waiting` and runs them on a worker that the tracker hands out, until `stop`.

    accepts: why a worker gets no work, "" when it does. refusal: what it said last. connected: whether it has a worker.
    """

    def __init__(self, tracker: Tracker, accepts: Callable[[Hello], str], waiting: Jobs) -> None:
        super().__init__(daemon=True, name="fleet link")
        self.job: Job | None = None
        self.connected = False
        self.refusal = ""
        self._since = 0.0
        self._tracker, self._accepts, self._waiting = tracker, accepts, waiting
        self._ended = threading.Event()
        self._connection: Any = None

    def stop(self) -> None:
        """End as soon as the job is done; a link that hangs in one stays behind as a daemon."""
        self._ended.set()

    def overdue(self) -> Job | None:
        """The job that its worker has had for too long, None where all is well."""
        job = self.job  # read once: the thread may be done with it any time
        return job if job is not None and time.monotonic() - self._since > job.seconds else None

    def run(self) -> None:
        while not self._ended.is_set():
            try:
                worker = self._connect()
            except (OSError, RuntimeError, ValueError, EOFError, AttributeError):
                self._ended.wait(_RETRY_SECONDS)
                continue
            if worker is None:
                self._ended.wait(_REFUSED_SECONDS)
                continue
            self.connected = True
            self._serve(worker)
            self.connected = False
            del worker  # closes the session: the worker goes back to the tracker

    def _connect(self) -> Any:
        """The measuring function of a free worker, None for one that is not accepted. Waits for one to be free."""
        tracker = self._tracker.session()
        try:
            session = tracker.request(self._tracker.key, max_retry=1)
        finally:
            tracker.close()
        hello = read_hello(session)
        self.refusal = self._accepts(hello)
        return None if self.refusal else _Worker(session)

    def _serve(self, worker: _Worker) -> None:
        """Run jobs until the worker is lost, or the end."""
        has, idle_since = "", time.monotonic()
        while not self._ended.is_set():
            job = self._waiting.take(has, _TAKE_SECONDS, time.monotonic() - idle_since)
            if job is None:
                continue
            has = job.request.task_id
            self._since, self.job = time.monotonic(), job
            lost, results = "", tuple[Measured, ...]()
            try:
                results = worker.run(job)
            except Exception as problem:
                # TVM has no type of its own for a connection that ends, nor for what ends on the other side.
                lost = _first_line(problem)
            self.job, idle_since = None, time.monotonic()
            job.outcomes.put(Outcome(job, results, lost))
            if lost:
                break
        self._waiting.leave(has)


class _Worker:
    def __init__(self, session: Any) -> None:
        self._session = session
        self._measure = session.get_function(MEASURE)

    def run(self, job: Job) -> tuple[Measured, ...]:
        answer = self._ask(job.request)
        if answer.needs_task:
            answer = self._ask(msgspec.structs.replace(job.request, task=job.task))
        expected = 1 if isinstance(job.request, RemoteRun) else len(job.request.libraries)
        if answer.fault or len(answer.results) != expected:
            raise RuntimeError(answer.fault or "an answer without results")
        return answer.results

    def _ask(self, request: RemoteRun | RemoteRetime) -> Answer:
        message = bytes(self._measure(msgspec.msgpack.encode(request)))
        return msgspec.msgpack.decode(message, type=Answer)


def read_hello(session: Any) -> Hello:
    """What a worker says of itself. Raises ValueError when it is none of ours."""
    try:
        return msgspec.msgpack.decode(bytes(session.get_function(HELLO)()), type=Hello)
    except (AttributeError, msgspec.MsgspecError) as problem:
        raise ValueError(f"no sparsetvm worker: {problem}") from problem


def first_hello(tracker: Tracker, patience: float) -> Hello:
    """What the first free worker of the key says. Raises EnvironmentProblem when none answers in time."""
    found: queue.Queue[Hello] = queue.Queue()

    def ask() -> None:
        while found.empty() and time.monotonic() < end:
            try:
                session = tracker.session()
                try:
                    found.put(read_hello(session.request(tracker.key, max_retry=1)))
                finally:
                    session.close()
            except (OSError, RuntimeError, ValueError):
                time.sleep(_RETRY_SECONDS)

    end = time.monotonic() + patience
    threading.Thread(target=ask, daemon=True).start()
    try:
        return found.get(timeout=patience)
    except queue.Empty:
        raise EnvironmentProblem(
            f"no worker of key '{tracker.key}' is free at {tracker.address}",
            hint=f"start one with `sparsetvm worker --tracker {tracker.address} --key {tracker.key}`",
        ) from None


def mismatch(hello: Hello, version: str = VERSION) -> str:
    """Why a worker speaks another language than this program, "" when it does not."""
    if hello.protocol != PROTOCOL or hello.version != version:
        return f"worker {hello.process} has sparsetvm {hello.version}, this is {version}: install the same on both"
    return ""


def _first_line(problem: BaseException) -> str:
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return (lines[0] if lines else type(problem).__name__)[:200]
