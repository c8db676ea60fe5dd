"""The measurer of a fleet: compiles here, measures on every worker of a key that a TVM tracker knows.

Each task that is measured has a **lane** (fleet_lane.py): builders compile its configs in parallel, and each library
goes to a queue as soon as it is there. Each **link**, a thread with a connection to one worker, takes the next job from
the queue (fleet_queue.py says which). A link whose worker is lost says so, its job goes back to the queue, and it asks
the tracker for another worker; a library that three workers were lost with is a crash. Results reach the search in the
thread that asked for them, one for each config, with the fingerprint of the device that measured it.

A worker that measures on another device model than the tune, or compiles for another target, gets no work.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from msgspec.structs import replace

from sparsetvm.core.config import Config
from sparsetvm.core.results import Event, Progress
from sparsetvm.core.target import DeviceFingerprint, Target
from sparsetvm.core.task import Task
from sparsetvm.errors import EnvironmentProblem
from sparsetvm.measure.fleet_lane import Lane, remote, taken
from sparsetvm.measure.fleet_link import Link, Outcome, Tracker, first_hello, mismatch
from sparsetvm.measure.fleet_protocol import Hello, RemoteLibrary
from sparsetvm.measure.fleet_queue import JobQueue
from sparsetvm.measure.fleet_worker import parse_tracker
from sparsetvm.measure.pool import default_jobs
from sparsetvm.measure.process import ForkServer
from sparsetvm.search.trial import Measured, OnResult

_POLL_SECONDS = 0.2
_LOOK_SECONDS = 2.0  # how often the tracker is asked for new workers
_PATIENCE = 60.0  # seconds without any worker before the tune gives up
_MOST_LANES = 8  # each has processes of its own


class FleetMeasurer:
    """Measures on the workers of `key`. Use as a context manager. As many threads as it has lanes may measure at once.

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
        self._waiting = JobQueue()
        self._links: list[Link] = []
        self._lanes: list[Lane] = []
        self._busy: list[Lane] = []
        self._choosing, self._looking, self._forking = threading.Lock(), threading.Lock(), threading.Lock()
        self._known = 0
        self._looked = 0.0
        self._alone_since = time.monotonic()
        self._refused: set[str] = set()

    @property
    def lanes(self) -> int:
        """How many tasks may be measured at once: one for each worker that the tracker knows."""
        self._look_for_workers()
        return max(1, min(self._known, _MOST_LANES))

    def measure(self, task: Task, configs: Sequence[Config], on_result: OnResult | None = None) -> list[Measured]:
        """Build each config here, check and time it on whatever worker is free. Failures are results.

        Raises EnvironmentProblem when no worker is left for longer than the patience.
        """
        results: dict[int, Measured] = {}
        with self._lane(task) as lane:
            for index, result in self._measured(lane, configs):
                results[index] = result
                if on_result is not None:
                    on_result(result)
        return [results[index] for index in range(len(configs))]

    def retime(self, task: Task, configs: Sequence[Config], rounds: int) -> list[Measured]:
        """Time the configs side by side, all on one worker; `times_us` has one time per round."""
        results: dict[int, Measured] = {}
        libraries: dict[int, RemoteLibrary] = {}
        with self._lane(task) as lane:
            for index, made in lane.build(configs, self._builders()):
                if isinstance(made, Measured):
                    results[index] = made
                else:
                    libraries[index] = remote(configs[index], made)
            order = sorted(libraries)
            if order:
                lane.retime([libraries[index] for index in order], rounds)
            while lane.waits:
                for outcome in self._settled(lane):
                    results.update(zip(order, outcome.results, strict=True))
        return [results[index] for index in range(len(configs))]

    def close(self) -> None:
        """Give the workers back and stop all processes. The measurer starts again when it is used again."""
        with self._looking:
            links, self._links = self._links, []
        for link in links:
            link.stop()
        with self._choosing:
            lanes, self._lanes, self._busy = self._lanes, [], []
        for lane in lanes:
            lane.close()
        self._waiting = JobQueue()
        self._server.close()

    def __enter__(self) -> FleetMeasurer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- lanes --------------------------------------------------------------------------------------------------------

    @contextmanager
    def _lane(self, task: Task) -> Iterator[Lane]:
        """The lane of a task, for this thread; whatever goes wrong in it ends all of them."""
        try:
            lane = self._choose_lane(task)
            yield lane
        except BaseException:
            self.close()
            raise
        with self._choosing:
            self._busy = [other for other in self._busy if other is not lane]

    def _choose_lane(self, task: Task) -> Lane:
        """The lane that has the task, else a new one, for which an idle lane makes room."""
        with self._choosing:
            idle = [lane for lane in self._lanes if lane not in self._busy]
            lane = next((lane for lane in idle if lane.task is task), None)
            if lane is None:
                # Idle ones go: to keep them would keep the workers that have their task waiting for it.
                for old in idle:
                    self._waiting.close(old.id)
                    self._lanes.remove(old)
                    old.close()
                lane = Lane(
                    task,
                    self.target,
                    self._server,
                    self._forking,
                    repeats=self._repeats,
                    seed=self._seed,
                    build_timeout=self._build_timeout,
                    put=self._waiting.put,
                    told=lambda message: self._tell("note", message, task),
                )
                self._waiting.open(lane.id)
                self._lanes.append(lane)
            self._busy.append(lane)
            return lane

    def _builders(self) -> int:
        """Of a lane: its share."""
        return max(1, self.jobs // max(1, len(self._busy)))

    def _measured(self, lane: Lane, configs: Sequence[Config]) -> Iterator[tuple[int, Measured]]:
        """Build in a thread of its own, measure in those of the links, report in this one."""
        built = lane.start_builders(configs, self._builders())
        building = True
        while building or lane.waits:
            for item in taken(built, 0.0 if lane.waits else _POLL_SECONDS):
                if isinstance(item, BaseException):
                    raise item
                if item is None:
                    building = False
                elif isinstance(item[1], Measured):
                    yield item
                else:
                    lane.run(item[0], configs[item[0]], item[1])
            for outcome in self._settled(lane):
                yield outcome.job.index, outcome.results[0]

    def _settled(self, lane: Lane) -> list[Outcome]:
        """Jobs of the lane that are done now."""
        self._look_for_workers()
        found = lane.settled(_POLL_SECONDS if lane.waits else 0.0)
        with self._looking:
            for link in list(self._links):
                if (job := link.overdue()) is not None:
                    self._links.remove(link)
                    link.stop()
                    job.outcomes.put(Outcome(job, (), f"no answer after {job.seconds:g} s"))
        return found

    # --- workers ------------------------------------------------------------------------------------------------------

    def _look_for_workers(self) -> None:
        """A link for each worker that the tracker has; an error when there has been none for too long."""
        with self._looking:
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
            self._known = self._tracker.count()
            while len(self._links) < max(1, self._known):
                self._links.append(Link(self._tracker, self._accepts, self._waiting))
                self._links[-1].start()
            alone = now - self._alone_since
        if alone > self._patience:
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

    def _tell(self, kind: str, message: str, task: Task | None = None) -> None:
        if self._progress is not None:
            self._progress(Event(kind=kind, task=task.name if task else "", message=message))


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
