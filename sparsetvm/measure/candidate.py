"""What a worker does with one candidate: build, check against the reference, time. Runs inside the worker process."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace

from sparsetvm.core.config import Config
from sparsetvm.core.record import Conditions, Status
from sparsetvm.core.target import Target
from sparsetvm.core.task import Task
from sparsetvm.core.thread_pool import configure_pool
from sparsetvm.measure.buffers import GuardedBuffer
from sparsetvm.measure.compile import SYMBOL, Built, FindTemplate, InvalidConfig, build, build_library, load_library
from sparsetvm.measure.conditions import read_conditions
from sparsetvm.measure.doubt import doubt, relative_difference, settle
from sparsetvm.measure.protocol import Build, Replies, Reply, Response, Retime, Run, SetTask, Stage, tells_of_memory
from sparsetvm.measure.reference import TOLERANCE, Reference, inputs_of, make_references, output_shape
from sparsetvm.measure.timing import (
    CacheFlush,
    TimeCalls,
    time_cold,
    time_evaluator,
    time_interleaved,
    time_repeats,
)
from sparsetvm.measure.verdict import check_all, judge

# Written before the first check: a value that the kernel leaves alone stays NaN and is found.
_POISON = np.nan


class Trial:
    """A built candidate with its buffers. x, y: the tensors that it reads and writes, in their physical layouts."""

    def __init__(self, built: Built, references: Sequence[Reference], tolerance: float = TOLERANCE) -> None:
        import tvm

        first = references[0]
        workload = first.workload
        shape_y = workload.layout_out.physical_shape(output_shape(workload))
        self._built = built
        self._references, self._tolerance = references, tolerance
        self._inputs = [GuardedBuffer.of(array) for array in inputs_of(first)]
        self._y = GuardedBuffer(shape_y, np.float32)
        self._arrays = [GuardedBuffer.of(array) for array in built.arrays]
        self._buffers = [*self._inputs, *self._arrays, self._y]
        self._arguments = [tvm.runtime.from_dlpack(buffer.array) for buffer in self._buffers]
        self.x, self.y = self._arguments[0], self._arguments[-1]

    def call(self) -> None:
        """Run once."""
        self._built.function(*self._arguments)

    def check(self) -> Reply:
        """Run on the inputs of each reference and poisoned output, and compare everything that can be compared.

        The inputs of the first are left in the buffers.
        """
        return check_all(self._references, self._checked)

    def timer(self, flush: CacheFlush | None) -> TimeCalls:
        """Times warm calls in TVM's loop, or with `flush` cold ones."""
        if flush is not None:
            return time_cold(self._built.function, self._arguments, flush, [buffer.array for buffer in self._inputs])
        return time_evaluator(self._built.module, SYMBOL, self._arguments)

    def _checked(self, reference: Reference) -> Reply:
        for buffer, array in zip(self._inputs, inputs_of(reference), strict=True):
            buffer.array[...] = array
        self._y.array[...] = _POISON
        self.call()
        if not all(buffer.intact() for buffer in self._buffers):
            return Reply("wrong_answer", message="the kernel wrote outside its buffers")
        if not all(map(_same, self._inputs, inputs_of(reference))):
            return Reply("wrong_answer", message="the kernel changed its input")
        if not all(map(_same, self._arrays, self._built.arrays)):
            return Reply("wrong_answer", message="the kernel changed its weights")
        return judge(reference, self._y.array, self._tolerance)


@dataclass(frozen=True)
class Prepared:
    """What all workers of a task share: they are forks of the process that made it."""

    task: Task
    target: Target
    seed: int
    references: tuple[Reference, ...]


def prepare(request: SetTask) -> Prepared:
    """Load the weights and compute the references."""
    weight = np.load(request.weight, allow_pickle=False)
    bias = None if request.bias is None else np.load(request.bias, allow_pickle=False)
    references = make_references(request.workload, weight, bias, request.seed) if request.check else ()
    return Prepared(Task("", request.workload, weight, bias), request.target, request.seed, references)


class Session:
    """The requests that one worker answers, all about one task."""

    def __init__(self, prepared: Prepared, find: FindTemplate, respond: Callable[[Response], None]) -> None:
        self._find = find
        self._respond = respond
        self._task, self._target = prepared.task, prepared.target
        self._seed, self._references = prepared.seed, prepared.references
        self._cache_flush: CacheFlush | None = None
        if self._target.kind == "cpu" and self._target.threads > 1:
            configure_pool(self._target.threads)

    def _flush(self) -> CacheFlush | None:
        """What makes the task's timings cold; None when it is timed warm."""
        if self._task.workload.cold and self._cache_flush is None:
            self._cache_flush = CacheFlush(self._target.l2)
        return self._cache_flush

    def run(self, request: Run) -> Reply:
        """Build or load, check, time."""
        self._respond(Stage("build"))
        built = self._guarded("compile_error", lambda: self._built(request.config, request.library))
        if isinstance(built, Reply):
            return built
        self._respond(Stage("run"))
        outcome: Reply = self._guarded("run_error", lambda: self._checked_and_timed(built, request))
        return replace(outcome, build_seconds=built.seconds)

    def build(self, request: Build) -> Reply:
        """Build into a library."""
        self._respond(Stage("build"))
        library = Path(request.library)
        seconds = self._guarded("compile_error", lambda: self._build_library(request.config, library))
        return seconds if isinstance(seconds, Reply) else Reply("ok", build_seconds=seconds)

    def retime(self, request: Retime) -> Replies:
        """Build and check all, then time in rounds."""
        replies: list[Reply] = []
        trials: dict[int, Trial] = {}
        twin: Trial | None = None
        for index, config in enumerate(request.configs):
            self._respond(Stage("build", index))
            library = request.libraries[index] if request.libraries else None
            built = self._guarded("compile_error", lambda config=config, library=library: self._built(config, library))  # type: ignore[misc]
            if isinstance(built, Reply):
                replies.append(built)
                continue
            self._respond(Stage("run", index))
            trial = self._trial(built, config)
            checked = self._guarded("run_error", trial.check)
            if checked.status == "ok":
                twin = self._trial(built, config) if twin is None else twin
                trials[index] = trial
            replies.append(replace(checked, build_seconds=built.seconds))
        if twin is not None:
            self._time_rounds(request, trials, twin, replies)
        return Replies(tuple(replies))

    def _time_rounds(self, request: Retime, trials: dict[int, Trial], twin: Trial, replies: list[Reply]) -> None:
        """Fill in the times of `trials`. `twin` is the first of them once more, with buffers of its own."""
        indices = list(trials)
        timers = [trial.timer(self._flush()) for trial in (*trials.values(), twin)]
        rng = random.Random(self._seed)  # noqa: S311
        orders = [rng.sample(range(len(timers)), len(timers)) for _ in range(request.rounds)]
        times: list[list[float]] = [[] for _ in timers]
        for at, microseconds in time_interleaved(timers, orders, request.seconds):
            if microseconds is None:
                self._respond(Stage("run", indices[at] if at < len(indices) else indices[0]))
            else:
                times[at].append(microseconds)
        conditions = replace(self._conditions(), noise=relative_difference(times[0], times[-1]))
        others = {index: self._other_us(trials[index]) for index in indices}
        for index, series in zip(indices, times, strict=False):
            self._respond(Stage("run", index))
            verdict = trials[index].check()
            if verdict.status == "ok":
                verdict = Reply(
                    "ok", tuple(series), replies[index].error, conditions=conditions, other_us=others[index]
                )
            replies[index] = replace(verdict, build_seconds=replies[index].build_seconds)

    def _conditions(self) -> Conditions:
        """The machine as it is right after a timing."""
        return read_conditions()

    def _other_us(self, trial: Trial) -> float | None:
        """Median time with caches in the other state than the task's, where it costs little to know."""
        return None

    def _trial(self, built: Built, config: Config) -> Trial:
        return Trial(built, self._references, self._find(config.template).tolerance)

    def _built(self, config: Config, library: str | None) -> Built:
        if library is not None:
            return load_library(Path(library))
        return build(self._task, config, self._target, self._find)

    def _build_library(self, config: Config, library: Path) -> float:
        return build_library(self._task, config, self._target, self._find, library)

    def _checked_and_timed(self, built: Built, request: Run) -> Reply:
        trial = self._trial(built, request.config)
        first = trial.check()
        if first.status != "ok":
            return first
        timer = trial.timer(self._flush())
        times = time_repeats(timer, request.repeats, request.seconds)
        reason = doubt(times, request.limits)
        if reason:
            times = settle(times, time_repeats(timer, request.repeats, request.seconds), request.limits)
        conditions, other = self._conditions(), self._other_us(trial)
        # Again: what was right once may be wrong later, in threads that race or a kernel that keeps state.
        verdict = trial.check()
        if verdict.status != "ok":
            return verdict
        if statistics.median(times) < request.limits.impossible:
            least = f"{request.limits.impossible:.4g} us that its multiplications take"
            return Reply("run_error", message=f"timed at {statistics.median(times):.4g} us, below the {least}")
        return Reply("ok", times, first.error, remeasured=reason, conditions=conditions, other_us=other)

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


def _same(buffer: GuardedBuffer, original: np.ndarray) -> bool:
    return np.array_equal(buffer.array, original)


def _first_line(problem: BaseException) -> str:
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return (lines[0] if lines else type(problem).__name__)[:300]
