"""Measuring the tasks of a set: one process for each, pinned to a core of its own, several at a time.

With a limit of time each process measures a coarse space first, a quarter of what was asked for, and then as much of
that as it expects to finish. A process that is not done when its time is up is ended; the coarse space is kept. So the
configs of a space are always timed side by side, and a space is always a product of knobs that a search can walk.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from benchlib.machine import cores_to_measure_on
from benchlib.search_table import FINALISTS, Pass, Spent, is_whole, measure_space, one_machine, read_passes, space_of
from benchlib.search_tasks import TaskSet, search_cases
from sparsetvm.core.record import Record
from sparsetvm.core.target import Target, device_fingerprint
from sparsetvm.core.task import Task
from sparsetvm.errors import EnvironmentProblem, SparseTvmError, UsageError
from sparsetvm.search.trial import Measurer

_COARSE = 4  # what was asked for over the space that is measured first
_CAUTION = 0.8  # of the time that is left, to be planned with
_GRACE = 5.0  # seconds that a process has to clean up


@dataclass(frozen=True)
class Plan:
    """What to measure. configs: most of the largest space of a task. jobs: processes at a time. seconds: for all tasks
    together, None for as long as it takes.
    """

    path: Path
    tasks: TaskSet
    target: Target
    configs: int
    jobs: int = 1
    seconds: float | None = None

    def known(self) -> dict[Pass, list[Record]]:
        """What the table holds already."""
        return read_passes(self.path, self.target) if self.path.exists() else {}


def measure_all(plan: Plan, wanted: str) -> list[str]:
    """Measure the tasks whose name has `wanted`; the names of those that were stopped because the time was up.

    Raises UsageError for no such task, a table of another machine or more jobs than cores, and EnvironmentProblem when
    a process failed.
    """
    names = [case.name for case in search_cases(plan.tasks) if wanted in case.name]
    if not names:
        raise UsageError(f"--task {wanted}: no task of the set '{plan.tasks}' has that in its name")
    cores = cores_to_measure_on(plan.jobs)
    machines = [(done.target, record.device) for done, records in plan.known().items() for record in records[:1]]
    one_machine(plan.path, [*machines, (plan.target, device_fingerprint(plan.target))])
    share = None if plan.seconds is None else share_of_time(plan.seconds, len(names), plan.jobs)
    context = multiprocessing.get_context("spawn")  # a fork would take over what this process has imported

    def start(name: str, core: int, deadline: float | None) -> BaseProcess:
        process = context.Process(target=_measure_one, args=(plan, name, core, deadline), daemon=True)
        process.start()
        return process

    stopped, failed = run_on_cores(names, cores, share, start)
    if failed:
        raise EnvironmentProblem(f"not measured: {', '.join(failed)}", hint="the reasons stand above")
    return stopped


def share_of_time(seconds: float, tasks: int, jobs: int) -> float:
    """Seconds that each task may take when `jobs` of them run at a time."""
    return seconds / max(1, -(-tasks // jobs))


def run_on_cores(
    names: list[str], cores: list[int], share: float | None, start: Callable[[str, int, float | None], BaseProcess]
) -> tuple[list[str], list[str]]:
    """Run a process for each name, one per core at a time, and end it after `share` seconds.

    The names of those that were ended and of those that failed.
    """
    waiting, free = list(names), list(cores)
    running: dict[BaseProcess, tuple[str, int, float | None]] = {}
    stopped: list[str] = []
    failed: list[str] = []
    try:
        while waiting or running:
            while waiting and free:
                name, core = waiting.pop(0), free.pop(0)
                deadline = None if share is None else time.monotonic() + share
                running[start(name, core, deadline)] = name, core, deadline
            soonest = min((end for _, _, end in running.values() if end is not None), default=None)
            wait([p.sentinel for p in running], None if soonest is None else max(0.0, soonest - time.monotonic()))
            for process, (name, core, deadline) in list(running.items()):
                if process.is_alive():
                    if deadline is not None and time.monotonic() >= deadline:
                        if name in stopped:
                            process.kill()
                        else:
                            process.terminate()  # it takes its workers and temporary files along
                            stopped.append(name)
                        running[process] = name, core, time.monotonic() + _GRACE
                    continue
                if process.exitcode and name not in stopped:
                    failed.append(name)
                process.join()
                del running[process]
                free.append(core)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.join(_GRACE)
            process.kill()
            process.join()
    return stopped, failed


def _measure_one(plan: Plan, name: str, core: int, deadline: float | None) -> None:
    """The life of a process: one task on one core."""
    from sparsetvm.measure.pool import Measurer as LocalMeasurer

    os.sched_setaffinity(0, {core})
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # after Ctrl-C the first process ends this one
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    try:
        case = next(case for case in search_cases(plan.tasks) if case.name == name)
        with LocalMeasurer(plan.target) as measurer:
            measure_task(case.task(plan.target), plan, measurer, deadline)
    except SparseTvmError as error:
        sys.exit(f"error: {name}: {error}")


def measure_task(task: Task, plan: Plan, measurer: Measurer, deadline: float | None) -> None:
    """Measure a task in one pass, or with a deadline (of the monotonic clock) first a coarse space, then what fits."""
    known = plan.known()

    def measure(configs: int) -> Spent:
        wanted = Pass(plan.tasks, plan.target, configs, plan.configs)
        return measure_space(task, wanted, measurer, plan.path, known.get(wanted, []))

    def size(configs: int) -> int:
        return space_of(task, plan.target, configs).cardinality

    whole = Pass(plan.tasks, plan.target, plan.configs, plan.configs)
    coarse = max(1, plan.configs // _COARSE)
    if deadline is None or is_whole(task, known.get(whole, [])) or size(coarse) == size(plan.configs):
        measure(plan.configs)
        return
    spent = measure(coarse)
    fitting = fitting_configs(spent, size, coarse, plan.configs, _CAUTION * (deadline - time.monotonic()))
    if size(fitting) > size(coarse):
        measure(fitting)


def fitting_configs(spent: Spent, size: Callable[[int], int], coarse: int, asked: int, seconds: float) -> int:
    """The thinning, from `coarse` to `asked`, whose space is expected to be measured within `seconds`.

    spent: what the coarse space took. size: configs of a thinning.
    """
    per_config = spent.search / size(coarse)
    per_finalist = spent.final / min(FINALISTS, size(coarse))

    def expected(configs: int) -> float:
        return per_config * size(configs) + per_finalist * min(FINALISTS, size(configs))

    return next((n for n in range(asked, coarse, -1) if expected(n) <= seconds), coarse)
