"""The measurer: builds, checks and times configs in worker processes, whatever the candidates do.

With one job, one worker builds and runs each candidate in turn: on few cores a parallel build would disturb the timing.
With more jobs, builders compile a whole batch into a temporary folder first, and then one runner times it.
A second worker stands by while one runs: when a candidate takes its worker down, the next one starts at once.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import psutil

from sparsetvm.core.config import Config
from sparsetvm.core.record import Status
from sparsetvm.core.results import Event, Progress
from sparsetvm.core.target import Target, default_threads
from sparsetvm.core.task import Task
from sparsetvm.errors import UsageError
from sparsetvm.measure.builders import Builders, Library, died, measured_of
from sparsetvm.measure.doubt import Expectation, noise_warning
from sparsetvm.measure.process import (
    ForkServer,
    TaskServer,
    WorkerDied,
    WorkerProcess,
    WorkerTimedOut,
    write_task,
)
from sparsetvm.measure.protocol import Replies, Reply, Response, Retime, Run, Stage
from sparsetvm.search.trial import Measured, OnResult

_TIMING_SHARE = 0.25  # of the run limit, twice for doubted times; the rest is for checks and a busy machine


class Measurer:
    """Measures on this machine. Use as a context manager; not thread-safe.

    build_timeout, run_timeout: seconds for one candidate. repeats: timings of a candidate, each at least 2 ms long.
    memory_limit: bytes a candidate may allocate, half of the machine's memory by default, 0 (no limit) beside a GPU.
    templates: name of a module with further templates, for tests. progress: told by an event of kind "warning" when
    timings cannot be trusted.
    """

    lanes = 1  # on one device, what runs beside a timing spoils it

    def __init__(
        self,
        target: Target,
        *,
        jobs: int = 1,
        build_timeout: float = 60.0,
        run_timeout: float = 10.0,
        repeats: int = 5,
        memory_limit: int | None = None,
        seed: int = 0,
        templates: str = "",
        progress: Progress | None = None,
    ) -> None:
        if jobs < 1:
            raise UsageError(f"--jobs {jobs}: must be at least 1")
        if not target.host:
            raise UsageError(
                f"target '{target}' cannot be measured on this machine",
                hint="tune on a machine of that kind",
            )
        self.target = target
        self.jobs = jobs
        self._build_timeout = build_timeout
        self._run_timeout = run_timeout
        self._repeats = repeats
        self._memory_limit = _memory_limit(target) if memory_limit is None else memory_limit
        self._seed = seed
        self._server = ForkServer(target, templates)
        self._progress = progress
        self._told = 0.0
        self._tasks: TaskServer | None = None
        self._runner: WorkerProcess | None = None
        self._spare: WorkerProcess | None = None
        self._spare_ready = False
        self._task: Task | None = None
        self._home: tempfile.TemporaryDirectory[str] | None = None

    def start(self) -> None:
        """Start importing TVM in the background; the first measurement waits for it."""
        self._server.start()

    def measure(self, task: Task, configs: Sequence[Config], on_result: OnResult | None = None) -> list[Measured]:
        """Build, check and time each config. Failures are results; only a broken installation raises."""
        results: list[Measured] = []
        try:
            self._set_task(task)
            built = self._build_all(configs) if self.jobs > 1 and len(configs) > 1 else {}
            for index, config in enumerate(configs):
                measured = self._measure_one(config, built.get(index))
                results.append(measured)
                if on_result is not None:
                    on_result(measured)
        except BaseException:
            self.close()
            raise
        return results

    def measure_library(self, task: Task, config: Config, library: Path) -> Measured:
        """Check and time a config that was built into `library`, wherever that was."""
        try:
            self._set_task(task)
            return self._measure_one(config, Library(library))
        except BaseException:
            self.close()
            raise

    def retime(
        self, task: Task, configs: Sequence[Config], rounds: int, libraries: Sequence[Path] = ()
    ) -> list[Measured]:
        """Time the configs side by side in one worker; `times_us` has one time per round.

        libraries: what the configs were built into, where they were.
        """
        try:
            self._set_task(task)
            return self._retime(tuple(configs), rounds, tuple(map(str, libraries)))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop all processes and remove temporary files. The measurer starts again when it is used again."""
        self._drop_task()
        self._server.close()
        if self._home is not None:
            self._home.cleanup()
            self._home = None

    def __enter__(self) -> Measurer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _set_task(self, task: Task) -> None:
        """Hand the weights over once per task; a new task gets new workers."""
        if self._task is task:
            return
        if self._home is None:
            self._home = tempfile.TemporaryDirectory(prefix="sparsetvm-measure-")
        self._drop_task()
        self._tasks = self._server.open_task(write_task(task, self.target, Path(self._home.name), self._seed))
        self._expectation = Expectation(task.workload, self.target)
        self._task = task

    def _drop_task(self) -> None:
        for worker in (self._runner, self._spare):
            if worker is not None:
                worker.forget()
        if self._tasks is not None:
            self._tasks.close()
        self._runner = self._spare = self._tasks = self._task = None

    def _spawn(self, *, pin: bool) -> WorkerProcess:
        if self._tasks is None:
            raise RuntimeError("no task is set")
        return self._tasks.spawn(memory_limit=self._memory_limit, pin=pin)

    def _ready_runner(self) -> WorkerProcess:
        """The worker for the next trial. A spare one that was forked after the last trial must be ready first: while it
        wakes up nothing may be timed.
        """
        if self._spare is not None and not self._spare_ready:
            try:
                self._spare.receive(self._build_timeout)
                self._spare_ready = True
            except (WorkerTimedOut, WorkerDied):
                self._spare = None
        if self._runner is None:
            self._runner, self._spare = self._spare or self._spawn(pin=self.target.threads == 1), None
        return self._runner

    def _keep_spare(self) -> None:
        """Between two trials, when nothing is timed."""
        if self._spare is None:
            self._spare, self._spare_ready = self._spawn(pin=self.target.threads == 1), False

    def _limit(self, stage: str) -> float:
        return self._run_timeout if stage == "run" else self._build_timeout

    def _build_all(self, configs: Sequence[Config]) -> dict[int, Library | Measured]:
        """Compile a batch in parallel builders while nothing is timed."""
        builders = Builders(lambda: self._spawn(pin=False), self.jobs, self._build_timeout, self._folder("candidates"))
        return dict(builders.build(configs))

    def _folder(self, name: str) -> Path:
        if self._home is None:
            raise RuntimeError("no task is set")
        return Path(self._home.name, name)

    def _measure_one(self, config: Config, built: Library | Measured | None) -> Measured:
        """Run what was built, or build and run; the result of a build that failed is what it is."""
        measured = built if isinstance(built, Measured) else self._run(config, built)
        if measured.ok:
            self._expectation.note(measured.best_us)
        return measured

    def _run(self, config: Config, built: Library | None) -> Measured:
        library = None if built is None else str(built.path)
        seconds = self._run_timeout * _TIMING_SHARE
        request = Run(config, self._repeats, seconds, library, self._expectation.limits())
        stage = "build"
        try:
            runner = self._ready_runner()
            runner.send(request)
            while True:
                response = runner.receive(self._limit(stage))
                if isinstance(response, Stage):
                    stage = response.name
                elif isinstance(response, Reply):
                    self._keep_spare()
                    return measured_of(config, response, 0.0 if built is None else built.seconds)
        except WorkerTimedOut:
            self._runner = None
            return self._timed_out(config, stage)
        except WorkerDied as death:
            self._runner = None
            return died(config, death, stage)

    def _retime(self, configs: tuple[Config, ...], rounds: int, libraries: tuple[str, ...] = ()) -> list[Measured]:
        """Retime all; a config that takes the worker down is marked and the rest start over."""
        results: dict[int, Measured] = {}
        while len(results) < len(configs):
            waiting = [index for index in range(len(configs)) if index not in results]
            at, stage = 0, "build"
            try:
                runner = self._ready_runner()
                seconds = self._run_timeout * _TIMING_SHARE
                built = tuple(libraries[i] for i in waiting) if libraries else ()
                runner.send(Retime(tuple(configs[i] for i in waiting), rounds, seconds, built))
                response: Response = Stage("build")
                while isinstance(response, Stage):
                    at, stage = response.index, response.name
                    response = runner.receive(self._limit(stage))
                self._keep_spare()
                if isinstance(response, Replies):
                    for index, reply in zip(waiting, response.replies, strict=True):
                        results[index] = measured_of(configs[index], reply, 0.0)
            except WorkerTimedOut:
                self._runner = None
                results[waiting[at]] = self._timed_out(configs[waiting[at]], stage)
            except WorkerDied as death:
                self._runner = None
                results[waiting[at]] = died(configs[waiting[at]], death, stage)
        self._warn_of_noise([results[index] for index in range(len(configs))])
        return [results[index] for index in range(len(configs))]

    def _warn_of_noise(self, results: Sequence[Measured]) -> None:
        noise = max((r.conditions.noise or 0.0 for r in results if r.conditions is not None), default=0.0)
        warning = noise_warning(noise, self._told)
        if warning and self._task is not None and self._progress is not None:
            self._told = noise
            self._progress(Event(kind="warning", task=self._task.name, message=warning, data={"noise": noise}))

    def _timed_out(self, config: Config, stage: str) -> Measured:
        status: Status = "run_timeout" if stage == "run" else "compile_timeout"
        return Measured(config=config, status=status, message=f"no result after {self._limit(stage):g} s ({stage})")


def default_jobs(target: Target) -> int:
    """Builders at a time: one on a CPU, where they would disturb the timing; up to 8 beside a GPU."""
    return min(8, default_threads()) if target.kind == "cuda" else 1


def _memory_limit(target: Target) -> int:
    """Half of the machine's memory; none on a GPU, whose driver maps more addresses than there is memory."""
    return 0 if target.kind == "cuda" else int(psutil.virtual_memory().total // 2)
