"""Builders: processes that compile configs into libraries, several at a time, whatever the candidates do to them."""

from __future__ import annotations

import itertools
import select
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sparsetvm.core.config import Config
from sparsetvm.core.record import Status
from sparsetvm.errors import EnvironmentProblem
from sparsetvm.measure.process import WorkerDied, WorkerProcess, WorkerTimedOut
from sparsetvm.measure.protocol import Build, Reply
from sparsetvm.search.trial import Measured

# Never the same name twice in a process: a loader hands out what it has loaded from that path before.
_numbers = itertools.count()


@dataclass(frozen=True)
class Library:
    """A config that was built: the file of that name, with others of its stem beside it; the seconds it took."""

    path: Path
    seconds: float = 0.0

    def files(self) -> list[Path]:
        """The library and what belongs to it."""
        return sorted(self.path.parent.glob(f"{self.path.stem}.*"))


class Builders:
    """Compiles batches. spawn: makes a worker of the task; timeout: seconds for a config; folder: for the libraries."""

    def __init__(self, spawn: Callable[[], WorkerProcess], jobs: int, timeout: float, folder: Path) -> None:
        self._spawn, self._jobs, self._timeout, self._folder = spawn, jobs, timeout, folder
        self._busy: dict[WorkerProcess, tuple[int, Path, float]] = {}
        self._idle: list[WorkerProcess] = []

    def build(self, configs: Sequence[Config]) -> Iterator[tuple[int, Library | Measured]]:
        """Yield (index, what became of the config) as each is done, in any order. Earlier libraries are deleted."""
        self._folder.mkdir(exist_ok=True)
        for old in self._folder.iterdir():
            old.unlink()
        waiting = list(range(len(configs)))[::-1]
        try:
            while waiting or self._busy:
                while waiting and len(self._busy) < self._jobs:
                    index = waiting.pop()
                    path = self._folder / f"candidate{next(_numbers)}.so"
                    try:
                        builder = self._idle.pop() if self._idle else self._spawn()
                        builder.send(Build(configs[index], str(path)))
                        self._busy[builder] = (index, path, time.monotonic() + self._timeout)
                    except WorkerDied as death:
                        yield index, died(configs[index], death, "build")
                if self._busy:
                    yield from self._collect(configs)
        finally:
            for builder in (*self._idle, *self._busy):
                builder.kill()
            self._idle, self._busy = [], {}

    def _collect(self, configs: Sequence[Config]) -> Iterator[tuple[int, Library | Measured]]:
        """Wait for the next builder to say something, or to run into its limit."""
        soonest = min(deadline for _, _, deadline in self._busy.values())
        descriptors = [d for builder in self._busy for d in (builder.fileno(), builder.output)]
        readable, _, _ = select.select(descriptors, [], [], max(0.0, soonest - time.monotonic()))
        for builder, (index, path, deadline) in list(self._busy.items()):
            config = configs[index]
            try:
                if builder.output in readable:
                    builder.drain()
                if builder.fileno() in readable:
                    response = builder.take(max(0.1, deadline - time.monotonic()))
                    if isinstance(response, Reply):
                        del self._busy[builder]
                        self._idle.append(builder)
                        ok = response.status == "ok"
                        yield index, Library(path, response.build_seconds) if ok else measured_of(config, response, 0.0)
                elif time.monotonic() >= deadline:
                    builder.kill()
                    raise WorkerTimedOut
            except WorkerTimedOut:
                del self._busy[builder]
                message = f"no result after {self._timeout:g} s (build)"
                yield index, Measured(config=config, status="compile_timeout", message=message)
            except WorkerDied as death:
                del self._busy[builder]
                yield index, died(config, death, "build")


def measured_of(config: Config, reply: Reply, build_seconds: float) -> Measured:
    """A worker's answer as what the search takes."""
    return Measured(
        config=config,
        status=reply.status,
        times_us=reply.times_us,
        error=reply.error,
        message=reply.message,
        build_seconds=max(reply.build_seconds, build_seconds),
        remeasured=reply.remeasured,
        conditions=reply.conditions,
        other_us=reply.other_us,
    )


def died(config: Config, death: WorkerDied, stage: str) -> Measured:
    """The result of a candidate whose worker died. Raises EnvironmentProblem when that was no fault of it."""
    if death.machine_fault:
        raise EnvironmentProblem(
            death.machine_fault,
            hint="run `sparsetvm doctor`; what was measured is in the log, and the same command goes on from there",
        )
    status: Status = "out_of_memory" if death.out_of_memory else "crash"
    return Measured(config=config, status=status, message=f"{death.describe()} ({stage})")
