"""What a worker does with one candidate: build, check against the reference, time. Runs inside the worker process."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sparsetvm.core.config import Config
from sparsetvm.core.record import Status
from sparsetvm.core.task import Task
from sparsetvm.measure.buffers import GuardedBuffer
from sparsetvm.measure.compile import SYMBOL, Built, FindTemplate, InvalidConfig, build, build_library, load_library
from sparsetvm.measure.protocol import Build, Replies, Reply, Response, Retime, Run, SetTask, Stage, tells_of_memory
from sparsetvm.measure.reference import TOLERANCE, Reference, make_reference, output_shape
from sparsetvm.measure.timing import (
    CacheFlush,
    TimeCalls,
    time_cold,
    time_evaluator,
    time_interleaved,
    time_repeats,
)

# Written before the first check: a value that the kernel leaves alone stays NaN and is found.
_POISON = np.nan
_SHARE_ALL_CORES = -3  # TVM's ThreadGroup::kSpecifyThreadShareAllCore


class Trial:
    """A built candidate with its buffers. x, y: the tensors that it reads and writes, in their physical layouts."""

    def __init__(self, built: Built, reference: Reference, threads: int) -> None:
        import tvm

        workload = reference.workload
        shape_y = workload.layout_out.physical_shape(output_shape(workload))
        self._built = built
        self._reference = reference
        self._threads = threads
        self._x = GuardedBuffer.of(reference.x)
        self._inputs = [self._x]
        if reference.residual is not None:
            self._inputs.append(GuardedBuffer.of(reference.residual))
        self._y = GuardedBuffer(shape_y, np.float32)
        self._buffers = [*self._inputs, *map(GuardedBuffer.of, built.arrays), self._y]
        self._arguments = [tvm.runtime.from_dlpack(buffer.array) for buffer in self._buffers]
        self.x, self.y = self._arguments[0], self._arguments[-1]

    def call(self) -> None:
        """Run once."""
        self._built.function(*self._arguments)

    def check(self) -> Reply:
        """Run once on poisoned output and compare everything that can be compared."""
        self._y.array[...] = _POISON
        self.call()
        return self._verdict()

    def timer(self, flush: CacheFlush | None) -> TimeCalls:
        """Times warm calls in TVM's loop, or with `flush` cold ones."""
        if flush is not None:
            return time_cold(self._built.function, self._arguments, flush, [buffer.array for buffer in self._inputs])
        return time_evaluator(self._built.module, SYMBOL, self._arguments)

    def check_again(self) -> Reply:
        """After timing: threads that race may be right once and wrong later."""
        return self.check() if self._threads > 1 else self._verdict()

    def _verdict(self) -> Reply:
        if not all(buffer.intact() for buffer in self._buffers):
            return Reply("wrong_answer", message="the kernel wrote outside its buffers")
        given = [self._reference.x, self._reference.residual]
        for buffer, original in zip(self._inputs, given, strict=False):
            if original is not None and not np.array_equal(buffer.array, original):
                return Reply("wrong_answer", message="the kernel changed its input")
        fault = self._reference.fault(self._y.array)
        if fault:
            return Reply("wrong_answer", message=fault)
        error = self._reference.error(self._y.array)
        if not error <= TOLERANCE:
            return Reply("wrong_answer", error=error, message=f"relative L2 error {error:.2e} > {TOLERANCE:.0e}")
        return Reply("ok", error=error)


class Session:
    """The requests that one worker answers, all about one task."""

    def __init__(self, task: SetTask, find: FindTemplate, respond: Callable[[Response], None]) -> None:
        self._find = find
        self._respond = respond
        weight = np.load(task.weight, allow_pickle=False)
        bias = None if task.bias is None else np.load(task.bias, allow_pickle=False)
        self._task = Task("", task.workload, weight, bias)
        self._target, self._seed = task.target, task.seed
        self._reference: Reference | None = None
        self._cache_flush: CacheFlush | None = None

    def _flush(self) -> CacheFlush | None:
        """What makes the task's timings cold; None when it is timed warm."""
        if self._task.workload.cold and self._cache_flush is None:
            self._cache_flush = CacheFlush(self._target.l2)
        return self._cache_flush

    def run(self, request: Run) -> Reply:
        """Build or load, check, time."""
        self._need_reference()
        self._respond(Stage("build"))
        built = self._guarded("compile_error", lambda: self._built(request.config, request.library))
        if isinstance(built, Reply):
            return built
        self._respond(Stage("run"))
        outcome = self._guarded("run_error", lambda: self._checked_and_timed(built, request))
        return _with_build_time(outcome, built.seconds)

    def build(self, request: Build) -> Reply:
        """Build into a library."""
        self._respond(Stage("build"))
        library = Path(request.library)
        seconds = self._guarded("compile_error", lambda: self._build_library(request.config, library))
        return seconds if isinstance(seconds, Reply) else Reply("ok", build_seconds=seconds)

    def retime(self, request: Retime) -> Replies:
        """Build and check all, then time in rounds."""
        self._need_reference()
        replies: list[Reply] = []
        trials: dict[int, Trial] = {}
        for index, config in enumerate(request.configs):
            self._respond(Stage("build", index))
            built = self._guarded("compile_error", lambda config=config: self._built(config, None))  # type: ignore[misc]
            if isinstance(built, Reply):
                replies.append(built)
                continue
            self._respond(Stage("run", index))
            trial = self._trial(built)
            checked = self._guarded("run_error", trial.check)
            if checked.status == "ok":
                trials[index] = trial
            replies.append(_with_build_time(checked, built.seconds))
        self._time_rounds(request, trials, replies)
        return Replies(tuple(replies))

    def _time_rounds(self, request: Retime, trials: dict[int, Trial], replies: list[Reply]) -> None:
        if not trials:
            return
        indices = list(trials)
        timers = [trials[index].timer(self._flush()) for index in indices]
        rng = random.Random(self._seed)  # noqa: S311
        orders = [rng.sample(range(len(timers)), len(timers)) for _ in range(request.rounds)]
        times: dict[int, list[float]] = {index: [] for index in indices}
        for at, microseconds in time_interleaved(timers, orders, request.seconds):
            if microseconds is None:
                self._respond(Stage("run", indices[at]))
            else:
                times[indices[at]].append(microseconds)
        for index in indices:
            verdict = trials[index].check_again()
            error, seconds = replies[index].error, replies[index].build_seconds
            if verdict.status == "ok":
                verdict = Reply("ok", tuple(times[index]), error)
            replies[index] = _with_build_time(verdict, seconds)

    def _need_reference(self) -> Reference:
        if self._reference is None:
            self._respond(Stage("reference"))
            _use_threads(self._target.threads)
            self._reference = make_reference(self._task.workload, self._task.weight, self._task.bias, self._seed)
        return self._reference

    def _trial(self, built: Built) -> Trial:
        return Trial(built, self._need_reference(), self._target.threads)

    def _built(self, config: Config, library: str | None) -> Built:
        if library is not None:
            return load_library(Path(library))
        return build(self._task, config, self._target, self._find)

    def _build_library(self, config: Config, library: Path) -> float:
        return build_library(self._task, config, self._target, self._find, library)

    def _checked_and_timed(self, built: Built, request: Run) -> Reply:
        trial = self._trial(built)
        first = trial.check()
        if first.status != "ok":
            return first
        times = time_repeats(trial.timer(self._flush()), request.repeats, request.seconds)
        verdict = trial.check_again()
        return verdict if verdict.status != "ok" else Reply("ok", times, first.error)

    def _guarded(self, status: Status, step: Callable[[], Any]) -> Any:
        """The step's value, or the Reply that says how it failed."""
        try:
            return step()
        except InvalidConfig as problem:
            return Reply("invalid", message=_first_line(problem))
        except MemoryError:
            return Reply("out_of_memory", message="a candidate ran out of memory")
        except Exception as problem:
            # Anything may come out of a candidate; it becomes a record with its status, never an error of the search.
            failed: Status = "out_of_memory" if tells_of_memory(str(problem)) else status
            return Reply(failed, message=f"{type(problem).__name__}: {_first_line(problem)}")


def _use_threads(count: int) -> None:
    """Set TVM's pool up as the deployed module will: `count` threads that share all cores, none bound to one."""
    import tvm

    if count > 1:
        cores = [str(core) for core in sorted(os.sched_getaffinity(0))]
        tvm.get_global_func("runtime.config_threadpool")(_SHARE_ALL_CORES, count, cores, len(cores))


def _with_build_time(reply: Reply, seconds: float) -> Reply:
    return Reply(reply.status, reply.times_us, reply.error, reply.message, seconds)


def _first_line(problem: BaseException) -> str:
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return (lines[0] if lines else type(problem).__name__)[:300]
