"""The measurer of a fleet: compiles here, measures on every worker of a key that a TVM tracker knows.

Builders compile the configs of a batch in parallel. Each library goes to a queue as soon as it is there; each **link**,
a thread with a connection to one worker, takes the next from it. A link whose worker is lost puts its library back and
asks the tracker for another worker; a library that three workers were lost with is a crash. Results reach the search in
this thread, one for each config, with the fingerprint of the device that measured it.

A worker that measures on another device model than the tune, or compiles for another target, gets no work.
"""

from __future__ import annotations

import queue
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from msgspec.structs import replace

from sparsetvm.core.config import Config
from sparsetvm.core.results import Event, Progress
from sparsetvm.core.target import DeviceFingerprint, Target
from sparsetvm.core.task import Task
from sparsetvm.errors import EnvironmentProblem
from sparsetvm.measure.builders import Builders, Library
from sparsetvm.measure.fleet_link import Job, Link, Outcome, Tracker, first_hello, mismatch
from sparsetvm.measure.fleet_protocol import (
    Hello,
    RemoteLibrary,
    RemoteRetime,
    RemoteRun,
    RemoteTask,
    library_message,
    task_message,
)
from sparsetvm.measure.fleet_worker import parse_tracker
from sparsetvm.measure.pool import default_jobs
from sparsetvm.measure.process import ForkServer, TaskServer, WorkerProcess
from sparsetvm.measure.protocol import SetTask
from sparsetvm.search.trial import Measured, OnResult

_ATTEMPTS = 3
_POLL_SECONDS = 0.2
_LOOK_SECONDS = 2.0  # how often the tracker is asked for new workers
_PATIENCE = 60.0  # seconds without any worker before the tune gives up
_ROUND_SECONDS = 60.0  # of a job, for each of its libraries, beside what follows
_JOB_SECONDS = 180.0  # of a job: a worker that must import TVM and compute references first, on a busy machine

_Item = TypeVar("_Item")


@dataclass
class _Open:
    """A job that is not done, and how often a worker was lost with it."""

    job: Job
    lost: int = 0
    reasons: list[str] = field(default_factory=list)


class FleetMeasurer:
    """Measures on the workers of `key`. Use as a context manager; not thread-safe.

    hello: what the first worker said (see `Fleet`). jobs: configs that are built at once, None for a default.
    """

    def __init__(
        self,
        tracker: Tracker,
        hello: Hello,
        target: Target,
        *,
        jobs: int | None = None,
        build_timeout: float = 60.0,
        repeats: int = 5,
        seed: int = 0,
        templates: str = "",
        progress: Progress | None = None,
        patience: float = _PATIENCE,
    ) -> None:
        self.target = target
        self.jobs = jobs or max(2, default_jobs(replace(target, kind="cuda")))
        self._tracker, self._device = tracker, hello.device
        self._build_timeout, self._repeats, self._seed = build_timeout, repeats, seed
        self._progress, self._patience = progress, patience
        self._server = ForkServer(target, templates)
        self._waiting: queue.Queue[Job] = queue.Queue()
        self._outcomes: queue.Queue[Outcome] = queue.Queue()
        self._links: list[Link] = []
        self._home: tempfile.TemporaryDirectory[str] | None = None
        self._tasks: TaskServer | None = None
        self._task: Task | None = None
        self._task_id = ""
        self._message: RemoteTask | None = None
        self._looked = 0.0
        self._alone_since = time.monotonic()
        self._refused: set[str] = set()

    def measure(self, task: Task, configs: Sequence[Config], on_result: OnResult | None = None) -> list[Measured]:
        """Build each config here, check and time it on whatever worker is free. Failures are results.

        Raises EnvironmentProblem when no worker is left for longer than the patience.
        """
        results: dict[int, Measured] = {}

        def done(index: int, result: Measured) -> None:
            results[index] = result
            if on_result is not None:
                on_result(result)

        try:
            self._set_task(task)
            self._measure(configs, done)
        except BaseException:
            self.close()
            raise
        return [results[index] for index in range(len(configs))]

    def retime(self, task: Task, configs: Sequence[Config], rounds: int) -> list[Measured]:
        """Time the configs side by side, all on one worker; `times_us` has one time per round."""
        try:
            self._set_task(task)
            return self._retime(configs, rounds)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give the workers back and stop all processes. The measurer starts again when it is used again."""
        for link in self._links:
            link.stop()
        self._links = []
        self._waiting, self._outcomes = queue.Queue(), queue.Queue()
        self._drop_task()
        self._server.close()
        if self._home is not None:
            self._home.cleanup()
            self._home = None

    def __enter__(self) -> FleetMeasurer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- the task -----------------------------------------------------------------------------------------------------

    def _set_task(self, task: Task) -> None:
        if self._task is task:
            return
        if self._home is None:
            self._home = tempfile.TemporaryDirectory(prefix="sparsetvm-fleet-")
        self._drop_task()
        weight, bias = Path(self._home.name, "weight.npy"), Path(self._home.name, "bias.npy")
        np.save(weight, task.weight, allow_pickle=False)
        if task.bias is not None:
            np.save(bias, task.bias, allow_pickle=False)
        bias_path = None if task.bias is None else str(bias)
        self._tasks = self._server.open_task(
            SetTask(task.workload, self.target, str(weight), bias_path, self._seed, check=False)
        )
        self._task, self._task_id = task, uuid.uuid4().hex
        self._message = task_message(task, self.target, self._repeats, self._seed)

    def _drop_task(self) -> None:
        if self._tasks is not None:
            self._tasks.close()
        self._tasks = self._task = self._message = None

    def _spawn(self) -> WorkerProcess:
        if self._tasks is None:
            raise RuntimeError("no task is set")
        return self._tasks.spawn(memory_limit=0, pin=False)

    def _builders(self) -> Builders:
        home = "" if self._home is None else self._home.name
        return Builders(self._spawn, self.jobs, self._build_timeout, Path(home, "candidates"))

    # --- jobs ---------------------------------------------------------------------------------------------------------

    def _measure(self, configs: Sequence[Config], done: Callable[[int, Measured], None]) -> None:
        """Build in a thread of its own, measure in those of the links, report in this one."""
        opened: dict[int, _Open] = {}
        built: queue.Queue[tuple[int, Library | Measured] | BaseException | None] = queue.Queue()
        builder = threading.Thread(target=_build, args=(self._builders(), configs, built), daemon=True)
        builder.start()
        building = True
        while building or opened:
            for item in _taken(built, 0.0 if opened else _POLL_SECONDS):
                if isinstance(item, BaseException):
                    raise item
                if item is None:
                    building = False
                elif isinstance(item[1], Measured):
                    done(item[0], item[1])
                else:
                    job = self._job(item[0], RemoteRun(self._task_id, _message(configs[item[0]], item[1])), 1)
                    opened[item[0]] = _Open(job)
                    self._waiting.put(job)
            for outcome in self._settled(opened):
                done(outcome.job.index, outcome.results[0])
        builder.join()

    def _retime(self, configs: Sequence[Config], rounds: int) -> list[Measured]:
        results: dict[int, Measured] = {}
        libraries: dict[int, RemoteLibrary] = {}
        for index, made in self._builders().build(configs):
            if isinstance(made, Measured):
                results[index] = made
            else:
                libraries[index] = _message(configs[index], made)
        order = sorted(libraries)
        if order:
            request = RemoteRetime(self._task_id, tuple(libraries[index] for index in order), rounds)
            opened = {0: _Open(self._job(0, request, len(order)))}
            self._waiting.put(opened[0].job)
            while opened:
                for outcome in self._settled(opened):
                    results.update(zip(order, outcome.results, strict=True))
        return [results[index] for index in range(len(configs))]

    def _job(self, index: int, request: RemoteRun | RemoteRetime, libraries: int) -> Job:
        if self._message is None:
            raise RuntimeError("no task is set")
        return Job(index, request, self._message, _JOB_SECONDS + _ROUND_SECONDS * libraries)

    def _settled(self, opened: dict[int, _Open]) -> list[Outcome]:
        """Jobs that are done now; those whose worker was lost go back to the queue."""
        self._look_for_workers()
        found = []
        for outcome in _taken(self._outcomes, _POLL_SECONDS if opened else 0.0):
            mine = opened.get(outcome.job.index)
            if mine is None or mine.job is not outcome.job:
                continue  # of a link that was given up: another one has the job
            settled = self._judged(mine, outcome)
            if settled is not None:
                del opened[outcome.job.index]
                found.append(settled)
        for link in [link for link in self._links if link.overdue()]:
            self._links.remove(link)
            link.stop()
            if link.job is not None:
                self._outcomes.put(Outcome(link.job, (), f"no answer after {link.job.seconds:g} s"))
        return found

    def _judged(self, mine: _Open, outcome: Outcome) -> Outcome | None:
        """The outcome that counts, None where another worker shall try."""
        if not outcome.lost:
            return outcome
        mine.lost += 1
        mine.reasons.append(outcome.lost)
        self._tell("note", f"a worker was lost: {outcome.lost}")
        if mine.lost >= _ATTEMPTS:
            return Outcome(outcome.job, _crashed(outcome.job, mine.reasons))
        mine.job = mine.job.again()
        self._waiting.put(mine.job)
        return None

    # --- workers ------------------------------------------------------------------------------------------------------

    def _look_for_workers(self) -> None:
        """A link for each worker that the tracker has; an error when there has been none for too long."""
        now = time.monotonic()
        for link in self._links:
            if link.refusal and link.refusal not in self._refused:
                self._refused.add(link.refusal)
                self._tell("warning", link.refusal)
        self._links = [link for link in self._links if link.is_alive()]
        if any(link.connected for link in self._links):
            self._alone_since = now
        if now - self._looked < _LOOK_SECONDS and self._links:
            return
        self._looked = now
        known = self._tracker.count()
        while len(self._links) < max(1, known):
            self._links.append(Link(self._tracker, self._accepts, self._waiting, self._outcomes))
            self._links[-1].start()
        if now - self._alone_since > self._patience:
            raise EnvironmentProblem(
                f"no worker of key '{self._tracker.key}' answers at {self._tracker.address} for {self._patience:g} s",
                hint=f"start one: sparsetvm worker --tracker {self._tracker.address} --key {self._tracker.key}; "
                "what was measured is in the log, and the same command goes on from there",
            )

    def _accepts(self, hello: Hello) -> str:
        """Why a worker gets no work, "" when it does."""
        theirs, ours = hello.target, self.target
        if problem := mismatch(hello):
            return problem
        if hello.device.model != self._device.model or (theirs.kind, theirs.isa) != (ours.kind, ours.isa):
            return (
                f"worker {hello.process} measures on {hello.device.model}, this tune on {self._device.model}: it gets "
                "no work; give its kind of device a key of its own"
            )
        return ""

    def _tell(self, kind: str, message: str) -> None:
        if self._progress is not None:
            self._progress(Event(kind=kind, task=self._task.name if self._task else "", message=message))


class Fleet:
    """The workers of one key: what they measure on, as the first of them says.

    threads, allow_tf32, allow_fp16, allow_bf16: as the tune wants them. Raises EnvironmentProblem when no tracker or
    no worker answers.
    """

    def __init__(
        self,
        address: str,
        key: str,
        *,
        threads: int | None = None,
        allow_tf32: bool = False,
        allow_fp16: bool = False,
        allow_bf16: bool = False,
        patience: float = _PATIENCE,
    ) -> None:
        self.tracker = Tracker(*parse_tracker(address), key)
        self.patience = patience
        self.hello = first_hello(self.tracker, patience)
        problem = mismatch(self.hello)
        if problem:
            raise EnvironmentProblem(problem, hint="a fleet runs one version of sparsetvm")
        theirs = self.hello.target
        self.target = replace(
            theirs,
            host=False,
            device=0,
            threads=threads or theirs.threads,
            tf32=allow_tf32,
            fp16=allow_fp16,
            bf16=allow_bf16,
        )

    @property
    def device(self) -> DeviceFingerprint:
        """The device that workers must have: records of the tune are about its model."""
        return self.hello.device

    def measurer(self, **options: Any) -> FleetMeasurer:
        """What measures on the fleet; the options of FleetMeasurer."""
        return FleetMeasurer(self.tracker, self.hello, self.target, patience=self.patience, **options)


def _build(builders: Builders, configs: Sequence[Config], built: queue.Queue[Any]) -> None:
    """The builders' thread: what they yield, what they raise, and None at the end."""
    try:
        for item in builders.build(configs):
            built.put(item)
    except BaseException as problem:
        built.put(problem)
    built.put(None)


def _taken(source: queue.Queue[_Item], seconds: float) -> list[_Item]:
    """All that is there, after waiting that long for the first."""
    found: list[_Item] = []
    try:
        found.append(source.get(timeout=seconds) if seconds else source.get_nowait())
        while True:
            found.append(source.get_nowait())
    except queue.Empty:
        return found


def _message(config: Config, library: Library) -> RemoteLibrary:
    return library_message(config, library.files(), library.path.stem, library.seconds)


def _crashed(job: Job, reasons: Sequence[str]) -> tuple[Measured, ...]:
    """The results of a job that took several workers down."""
    request = job.request
    libraries = (request.library,) if isinstance(request, RemoteRun) else request.libraries
    message = f"{len(reasons)} workers were lost while they measured it: {reasons[-1]}"
    return tuple(Measured(config=library.config, status="crash", message=message) for library in libraries)
