"""Tuning of all tasks of a model: reuse what is known, search the rest, re-time the best beside dense.

1. Each task asks the log. An exact record needs no trial, a compatible one needs one measurement.
2. Tasks of one family with nearly equal patterns are searched once; the others check the winner.
3. Rounds go to the tasks where they are expected to save most, until the limits are reached.
4. The best configs of a task and its best dense one are timed side by side; dense wins unless it is slower.
"""

from __future__ import annotations

import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

from sparsetvm.core.config import Config
from sparsetvm.core.record import Record
from sparsetvm.core.results import Event, Progress
from sparsetvm.core.target import DeviceFingerprint, Target, device_fingerprint
from sparsetvm.core.task import Task
from sparsetvm.errors import NoCandidateError
from sparsetvm.log.relation import patterns_alike
from sparsetvm.schedules.base import matching
from sparsetvm.search.budget import Deadline, TuneOptions, broad_round_size, next_task, round_size, starts_broad
from sparsetvm.search.candidates import Candidates, Matching, candidates_of, known_dense, validator
from sparsetvm.search.cost_model import Sample
from sparsetvm.search.outcome import Origin, RecordMaker, RecordStage, TaskOutcome, TuningInterrupted, count_statuses
from sparsetvm.search.side_by_side import SideBySide
from sparsetvm.search.task_search import TaskSearch
from sparsetvm.search.trial import Decision, Measured, Measurer, RecordIndex

JournalAppend = Callable[[list[Record]], None]

SEEDS = 4
_CHECK_ROUNDS = 3
# A guess of what a trial takes, until some of the task were measured: compiling a pattern into code costs most.
_TRIAL_SECONDS, _NNZ_SECONDS = 0.15, 5e-6
_GPU_BUILD_SECONDS, _GPU_RUN_SECONDS = 0.5, 0.05  # the same on a GPU: nvcc, as often as there are builders at once
_LEAST_SECONDS = 1e-3
_MARGIN = 1.3  # on the time kept for final rounds: a new worker computes the reference again


def tune_tasks(
    tasks: Sequence[Task],
    target: Target,
    options: TuneOptions,
    index: RecordIndex,
    journal_append: JournalAppend,
    measurer: Measurer,
    progress: Progress,
    seed: int = 0,
    *,
    templates: Matching = matching,
    clock: Callable[[], float] = time.monotonic,
    device: DeviceFingerprint | None = None,
) -> list[TaskOutcome]:
    """Choose a config for each task, in the order of `tasks`.

    Every measurement is handed to `journal_append` as soon as it is there. Raises NoCandidateError, which names the
    layer, when no candidate of a task works, and TuningInterrupted on Ctrl-C, after the workers were stopped. device:
    what measures; None for the target's device in this machine.
    """
    device = device or device_fingerprint(target)
    tuner = _Tuner(tasks, target, options, index, journal_append, measurer, progress, seed, templates, clock, device)
    try:
        return tuner.run()
    except KeyboardInterrupt:
        measurer.close()
        raise TuningInterrupted(tuner.known()) from None


class _Tuner:
    """State of one `tune_tasks`. Tasks are known by their position."""

    def __init__(
        self,
        tasks: Sequence[Task],
        target: Target,
        options: TuneOptions,
        index: RecordIndex,
        journal_append: JournalAppend,
        measurer: Measurer,
        progress: Progress,
        seed: int,
        templates: Matching,
        clock: Callable[[], float],
        device: DeviceFingerprint,
    ) -> None:
        self._tasks = tasks
        self._target = target
        self._options = options
        self._index = index
        self._append = journal_append
        self._measurer = measurer
        self._progress = progress
        self._seed = seed
        self._device = device
        self._broad = starts_broad(target)
        self._deadline = Deadline(options.seconds, clock)
        self._records = RecordMaker(self._device, seed, options.run)
        self._candidates = [self._candidates_of(task, templates) for task in tasks]
        self._outcomes: dict[int, TaskOutcome] = {}
        self._searches: dict[int, TaskSearch] = {}
        self._followers: dict[int, int] = {}
        self._checks: dict[int, int] = {}
        self._trials = 0
        self._first_result = 0.0
        self._spent: defaultdict[int, float] = defaultdict(float)  # seconds of search trials by task
        self._measured: Counter[int] = Counter()
        self._side = SideBySide(measurer)
        self._in_flight = 0  # trials that have been started and not noted

    def run(self) -> list[TaskOutcome]:
        for at in range(len(self._tasks)):
            self._reuse(at)
        self._group([at for at in range(len(self._tasks)) if at not in self._outcomes])
        self._search()
        self._finish_all()
        for at, leader in self._followers.items():
            self._follow(at, leader)
        return [self._outcomes[at] for at in range(len(self._tasks))]

    def known(self) -> list[TaskOutcome]:
        """Outcomes so far; tasks in the middle of their search with their best config."""
        for at, search in self._searches.items():
            if at not in self._outcomes and search.best_us < float("inf"):
                self._conclude(at, search.settle([]), "interrupted before the final round")
        return [self._outcomes[at] for at in sorted(self._outcomes)]

    # Step 1. Reuse.

    def _candidates_of(self, task: Task, templates: Matching) -> Candidates:
        candidates = candidates_of(task.workload, self._target, templates)
        if not candidates.choices:
            raise NoCandidateError(
                f"no schedule template matches {task.workload.describe()} on {self._target}", layer=task.name
            )
        return candidates

    def _reuse(self, at: int) -> None:
        """Settle the task from the log if the rules of reuse allow it."""
        task, candidates = self._tasks[at], self._candidates[at]
        decision = self._index.best(task.workload, self._device, validator(candidates), self._options.reuse)
        record = decision.record
        if record is None or decision.kind not in ("exact", "compatible"):
            return
        if decision.kind == "exact" and record.stage != "search":
            source: Origin = "shipped" if decision.source == "shipped" else "exact"
            self._outcomes[at] = TaskOutcome(
                task, record.config, source, record.best_us, self._known_dense(at), why=_reason(decision)
            )
            self._tell_end(at, f"reused ({source})")
        elif decision.kind == "compatible" and self._deadline.left() > 0:
            self._check_compatible(at, record, decision)

    def _check_compatible(self, at: int, record: Record, decision: Decision) -> None:
        task = self._tasks[at]
        checked = self._retime(at, [record.config], "check")[0]
        if not checked.ok:
            self._tell("note", at, f"the known config no longer works ({checked.status}): searching")
            return
        self._outcomes[at] = TaskOutcome(
            task, record.config, "compatible", checked.best_us, self._known_dense(at), 0, self._checks[at],
            why=_reason(decision),
        )  # fmt: skip
        self._tell_end(at, "reused (compatible), measured once")

    def _known_dense(self, at: int) -> float | None:
        record = known_dense(self._index, self._tasks[at].workload, self._candidates[at], self._device)
        return None if record is None else record.best_us

    # Step 2. Groups.

    def _group(self, waiting: list[int]) -> None:
        """Tasks whose pattern hardly differs from an earlier one follow it; the others are searched."""
        for at in waiting:
            leader = next((other for other in self._searches if self._alike(other, at)), None)
            if leader is not None:
                self._followers[at] = leader
                self._searches[leader].budget.count += self._tasks[at].count
            else:
                self._searches[at] = self._make_search(at)

    def _alike(self, leader: int, at: int) -> bool:
        ours, theirs = self._tasks[at].workload, self._tasks[leader].workload
        return ours.family == theirs.family and patterns_alike(theirs, ours)

    def _make_search(self, at: int) -> TaskSearch:
        task, candidates = self._tasks[at], self._candidates[at]
        if not self._options.reuse:
            return TaskSearch(task, candidates, self._target, self._options, device=self._device, seed=self._seed)
        valid, workload = validator(candidates), task.workload
        return TaskSearch(
            task,
            candidates,
            self._target,
            self._options,
            device=self._device,
            seed=self._seed,
            seeds=self._index.seeds(workload, SEEDS, self._device, valid),
            skip=self._index.failed_configs(workload, self._device, valid),
            training=self._index.training(workload, self._device),
            earlier=[
                r for r in self._index.measured(workload, self._device) if valid(r.config, r.template_version, "")
            ],
        )

    # Step 3. Search.

    def _search(self) -> None:
        order = sorted(
            self._searches,
            key=lambda at: -self._searches[at].budget.count * self._tasks[at].workload.dense_flops,
        )
        new = [at for at in order if self._searches[at].budget.rounds == 0]
        began: dict[int, float] = {}
        while True:
            lanes = self._measurer.lanes
            while len(self._side) < lanes and (at := self._next(order, new)) is not None:
                configs = self._batch(at)
                if configs:
                    began[at] = self._deadline.now()
                    if lanes == 1:
                        self._end_round(at, self._measure(at, configs), began[at])
                    else:
                        self._in_flight += len(configs)
                        self._side.measure(at, self._tasks[at], configs)
            if not self._side:
                return
            found = self._side.next()
            if found.result is not None:
                self._in_flight -= 1
                self._note(found.at, found.result)
            elif found.all is not None:
                self._end_round(found.at, found.all, began[found.at])

    def _next(self, order: Sequence[int], new: list[int]) -> int | None:
        """The task of the next round, None when there shall be none now. new: tasks without one, taken from here."""
        # A first round is worth more than any final round: it may use the time of those.
        while new and self._trials_left() > 0 and self._deadline.left() > 0:
            at = new.pop(0)
            self._tell("task_start", at, self._tasks[at].workload.describe())
            return at
        waiting = [at for at in order if at not in self._side]
        if new or not self._may_go_on() or not waiting:
            return None
        limited = self._options.seconds is not None
        budgets = [self._searches[at].budget for at in waiting]
        chosen = next_task(budgets, [self._trial_seconds(at) for at in waiting] if limited else None)
        return None if chosen is None else waiting[chosen]

    def _batch(self, at: int) -> list[Config]:
        """The configs of the task's next round."""
        search = self._searches[at]
        size = min(self._round_size(search), self._trials_left())
        waiting = sum(other.budget.rounds == 0 for other in self._searches.values())
        if not search.budget.rounds and waiting > 1:
            # Few trials in all: no task's first round may use up those of the others.
            size = min(size, max(2, self._trials_left() // waiting))
        least = 1 if search.budget.rounds else 2  # the default and a dense config: less says nothing
        left = min(self._time_left(), 1e6)
        if self._broad and not search.budget.rounds:
            left /= waiting  # a broad round is long: those of other tasks need as much
        size = max(min(size, least), min(size, int(left / self._trial_seconds(at))))
        return search.next_batch(size)

    def _measure(self, at: int, configs: list[Config]) -> list[Measured]:
        """A round of a measurer that measures one task at a time."""
        return self._measurer.measure(self._tasks[at], configs, lambda result: self._note(at, result))

    def _end_round(self, at: int, results: Sequence[Measured], began: float) -> None:
        search = self._searches[at]
        # The very first result also waited for the workers to start: it says nothing about trials.
        first = not self._measured
        self._spent[at] += self._deadline.now() - (self._first_result if first else began)
        self._measured[at] += len(results) - first
        search.end_round(results)
        self._tell_round(at, len(results))
        samples = [Sample(self._tasks[at].workload, r.config, r.best_us) for r in results if r.ok]
        for other, theirs in self._searches.items():
            if other != at:
                theirs.learn_from(samples)

    def _round_size(self, search: TaskSearch) -> int:
        batch, jobs = self._options.preset.batch, self._measurer.jobs
        if self._broad:
            return broad_round_size(search.budget.rounds, search.opening, batch, jobs)
        return round_size(search.budget.trials, batch, jobs)

    def _tell_round(self, at: int, trials: int) -> None:
        search = self._searches[at]
        told = _known(rank_correlation=search.rank_correlations[-1], expected_gain=search.budget.promise)
        self._tell("round", at, f"{trials} trials, {len(search.results)} in all", **told)

    def _note(self, at: int, result: Measured) -> None:
        """Journal one result at once: whatever happens next, it is kept."""
        self._append([self._records.record(self._tasks[at], self._candidates[at], result, "search")])
        if not self._trials:
            self._first_result = self._deadline.now()
        self._trials += 1
        search = self._searches[at]
        search.note(result)
        data: dict[str, float | str] = {"status": result.status, "trial": len(search.results)}
        if result.ok:
            data.update(time_us=result.best_us, best_us=search.best_us, **_known(dense_us=search.dense_us))
        self._tell("trial", at, str(result.config) if result.ok else result.message, **data)

    def _may_go_on(self) -> bool:
        """True while trials are left, and time for them beside what the final rounds need."""
        return self._trials_left() > 0 and self._time_left() > 0

    def _trials_left(self) -> int:
        return sys.maxsize if self._options.trials is None else self._options.trials - self._trials - self._in_flight

    def _time_left(self) -> float:
        """Seconds beside what final rounds, side by side where there are several devices, and checks will take."""
        finals = sum(self._trial_seconds(at) for at in self._searches) * (self._options.preset.top_k + 1)
        finals /= max(1, min(self._measurer.lanes, len(self._searches)))
        checks = sum(self._trial_seconds(leader) for leader in self._followers.values()) * 2
        return self._deadline.left() - _MARGIN * (finals + checks)

    def _trial_seconds(self, at: int) -> float:
        """Seconds that a trial of the task takes, measured or guessed."""
        build = _GPU_BUILD_SECONDS / max(1, self._measurer.jobs) if self._broad else 0.0
        if self._measured[at]:
            # When the first result of many builds at once is there, the others' are done as well: not the next ones.
            return max(self._spent[at] / self._measured[at], _LEAST_SECONDS, build)
        guess = build + _GPU_RUN_SECONDS if self._broad else _TRIAL_SECONDS
        return guess + _NNZ_SECONDS * self._tasks[at].workload.nnz

    # Step 4. Final rounds.

    def _finish_all(self) -> None:
        """The final rounds of all tasks, as many at once as the measurer can."""
        waiting = list(self._searches)
        while waiting or self._side:
            lanes = self._measurer.lanes
            while waiting and len(self._side) < lanes:
                at = waiting.pop(0)
                finalists = self._searches[at].finalists(self._options.preset.top_k)
                if not finalists and not self._searches[at].results:
                    self._take_default(at, "the limits were reached before its first trial")
                elif not finalists or self._deadline.left() <= 0:
                    self._finish(at, [])
                elif lanes == 1:
                    self._finish(at, self._retime(at, finalists, "final"))
                else:
                    self._side.retime(at, self._tasks[at], finalists, self._rounds("final"))
            if self._side:
                found = self._side.next()
                self._finish(found.at, self._keep(found.at, found.all or (), "final"))

    def _finish(self, at: int, finals: Sequence[Measured]) -> None:
        self._conclude(at, self._searches[at].settle(finals), "", finals)

    def _conclude(self, at: int, winner: Measured, why: str, finals: Sequence[Measured] = ()) -> None:
        search, candidates = self._searches[at], self._candidates[at]
        dense = [r.best_us for r in finals if r.ok and candidates.is_dense(r.config)]
        source: Origin = "dense" if candidates.is_dense(winner.config) else "tuned"
        self._outcomes[at] = TaskOutcome(
            self._tasks[at], winner.config, source, winner.best_us, min(dense, default=search.dense_us),
            len(search.results), self._checks.get(at, 0), count_statuses(search.results), why,
            search.rank_correlations,
        )  # fmt: skip
        self._tell_end(at, source, trials=len(search.results))

    def _follow(self, at: int, leader: int) -> None:
        """Take the leader's config if it holds against the task's own default."""
        task, candidates, led = self._tasks[at], self._candidates[at], self._outcomes[leader]
        why = f"same shape and nearly the same pattern as {led.task.name}"
        wanted = [c for c in dict.fromkeys([led.config, candidates.default]) if candidates.contains(c)]
        if led.source == "default" or self._deadline.left() <= 0:
            if led.source == "default" or not candidates.contains(led.config):
                self._take_default(at, "the limits were reached before its first trial")
            else:
                self._outcomes[at] = TaskOutcome(task, led.config, "compatible", None, led.dense_us, why=why)
            return
        good = [r for r in self._retime(at, wanted, "check") if r.ok]
        if not good:
            dense = [c for c in candidates.first() if candidates.is_dense(c) and c not in wanted]
            good = [r for r in self._retime(at, dense, "check") if r.ok] if dense else []
        if not good:
            raise NoCandidateError(
                f"neither the config of '{led.task.name}' nor the defaults work", layer=task.name,
                hint="run `sparsetvm doctor`; if it finds nothing, report the failure with the tuning log",
            )  # fmt: skip
        best = min(good, key=lambda r: r.best_us)
        source: Origin = "dense" if candidates.is_dense(best.config) else "compatible"
        self._outcomes[at] = TaskOutcome(
            task, best.config, source, best.best_us, led.dense_us, 0, self._checks[at], why=why
        )
        self._tell_end(at, why)

    def _take_default(self, at: int, why: str) -> None:
        self._outcomes[at] = TaskOutcome(self._tasks[at], self._candidates[at].default, "default", why=why)
        self._tell("note", at, f"default config: {why}")

    def _retime(self, at: int, configs: list[Config], stage: RecordStage) -> list[Measured]:
        results = self._measurer.retime(self._tasks[at], configs, self._rounds(stage))
        if stage == "check":
            self._checks[at] = self._checks.get(at, 0) + len(results)
        return self._keep(at, results, stage)

    def _rounds(self, stage: RecordStage) -> int:
        return self._options.preset.final_rounds if stage == "final" else _CHECK_ROUNDS

    def _keep(self, at: int, results: Sequence[Measured], stage: RecordStage) -> list[Measured]:
        self._append([self._records.record(self._tasks[at], self._candidates[at], r, stage) for r in results])
        return list(results)

    def _tell_end(self, at: int, message: str, **data: float | str) -> None:
        outcome = self._outcomes[at]
        self._tell("task_end", at, message, **_known(best_us=outcome.best_us, dense_us=outcome.dense_us), **data)

    def _tell(self, kind: str, at: int, message: str, **data: float | str) -> None:
        self._progress(Event(kind=kind, task=self._tasks[at].name, message=message, data=data))


def _known(**data: float | None) -> dict[str, float]:
    """Without what is None."""
    return {name: value for name, value in data.items() if value is not None}


def _reason(decision: Decision) -> str:
    return decision.why[0] if decision.why else ""
