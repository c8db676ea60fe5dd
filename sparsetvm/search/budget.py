"""How many trials, and for which task: effort presets, total limits, and the allocation of rounds to tasks.

Rounds go where they are expected to save most of the model's time, as in Ansor's task scheduler (Zheng et al., 2020).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sparsetvm.core.target import Target
from sparsetvm.errors import UsageError, did_you_mean


@dataclass(frozen=True)
class Effort:
    """One preset. trials, dense_trials: most per task, and for tasks that only dense templates match.

    batch: most configs per round; repeats: timings of a config in the search; top_k, final_rounds: configs that are
    re-timed beside the best dense one, and how often; patience: trials without gain after which a task is left;
    least_gain: share of a task's time that the next trial must be expected to save, else the task is left.
    """

    trials: int
    dense_trials: int
    batch: int
    repeats: int
    top_k: int
    final_rounds: int
    patience: int
    least_gain: float


EFFORTS: dict[str, Effort] = {
    "quick": Effort(
        trials=12, dense_trials=4, batch=6, repeats=3, top_k=2, final_rounds=5, patience=8, least_gain=0.01
    ),
    "default": Effort(
        trials=48, dense_trials=12, batch=12, repeats=5, top_k=3, final_rounds=7, patience=24, least_gain=0.01
    ),
    "max": Effort(
        trials=256, dense_trials=48, batch=16, repeats=7, top_k=5, final_rounds=11, patience=96, least_gain=0.002
    ),
}
_FIRST_BATCH = 2
_HOPELESS, _FAILING = 8, 12  # trials in a row without promise, or without any success, after which a task is left
# Without a trial limit a budget in seconds is the limit; no space needs more trials than this.
_TRIALS_UNDER_BUDGET = 256
# Share of a task's time that a round may save before a model says better; halves with every so many trials.
_FIRST_SHARE, _HALF_TRIALS = 0.3, 12
_GAIN = 0.99  # a new best must be this much faster to count against patience


@dataclass(frozen=True)
class TuneOptions:
    """What the user chose; where None, the effort preset decides.

    trials: most search trials in all. seconds: most time in all. early_stopping: trials of a task without gain after
    which it is left. reuse: False ignores the log. run: name of this run in its records.
    """

    effort: str = "default"
    trials: int | None = None
    seconds: float | None = None
    early_stopping: int | None = None
    reuse: bool = True
    run: str = ""

    @property
    def preset(self) -> Effort:
        """The effort preset. Raises UsageError for an unknown name."""
        if self.effort not in EFFORTS:
            raise UsageError(
                f"unknown effort '{self.effort}'{did_you_mean(self.effort, EFFORTS)}", hint=f"use {', '.join(EFFORTS)}"
            )
        return EFFORTS[self.effort]

    def checked(self) -> TuneOptions:
        """These options. Raises UsageError for an unknown effort."""
        _ = self.preset
        return self

    @property
    def patience(self) -> int:
        return self.preset.patience if self.early_stopping is None else self.early_stopping

    def task_limit(self, *, dense_only: bool) -> int:
        """Most trials of one task."""
        effort = self.preset
        if dense_only:
            return effort.dense_trials
        unlimited = self.trials is not None or self.seconds is not None
        return max(effort.trials, _TRIALS_UNDER_BUDGET) if unlimited else effort.trials


def round_size(trials: int, batch: int, jobs: int = 1) -> int:
    """Configs of a task's next round after `trials` of them: few at first, when the model learns most from each.

    jobs: how many are built at once; a round of fewer would leave builders idle.
    """
    return min(batch, max(_FIRST_BATCH, jobs, trials // 4))


def starts_broad(target: Target) -> bool:
    """True where trials cost little beside a build and builds run side by side: on GPUs."""
    return target.kind == "cuda"


def broad_round_size(rounds: int, opening: int, batch: int, jobs: int) -> int:
    """Configs of a task's next round after `rounds` of them where the search starts broad.

    First all `opening` configs that were chosen without measuring, then whole batches. jobs: as in `round_size`.
    """
    return max(batch if rounds else opening, jobs)


class Deadline:
    """The time budget. `clock` returns seconds; tests pass their own."""

    def __init__(self, seconds: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = math.inf if seconds is None else clock() + seconds

    def left(self) -> float:
        """Seconds until the end, negative after it, infinity without a budget."""
        return self._end - self._clock()

    def now(self) -> float:
        return self._clock()


@dataclass
class TaskBudget:
    """How one task stands. count: layers that share it; best_us: infinity before the first success.

    limit, patience, least_gain: see Effort. stale: trials since the last gain. promise: share of the time that the
    model expects the next trial to save, None while it cannot tell. hopeless: trials in a row while that was too
    little.
    """

    count: int
    limit: int
    patience: int
    least_gain: float = 0.01
    trials: int = 0
    rounds: int = 0
    best_us: float = math.inf
    stale: int = 0
    promise: float | None = None
    hopeless: int = 0
    exhausted: bool = False

    def observe(self, times_us: Sequence[float], promise: float | None) -> None:
        """Note a round: its times (infinity for failures), and the gain that the model expects of the next."""
        self.trials += len(times_us)
        self.rounds += 1
        best = min(times_us, default=math.inf)
        if best < self.best_us * _GAIN or math.isinf(self.best_us):
            self.stale = 0
        else:
            self.stale += len(times_us)
        self.best_us = min(self.best_us, best)
        self.promise = promise
        too_little = promise is not None and promise < self.least_gain and self.stale > 0
        self.hopeless = self.hopeless + len(times_us) if too_little else 0

    @property
    def done(self) -> bool:
        """True when another round is not worth it: limits, no gain for long, or the model has seen none for a while."""
        failing = math.isinf(self.best_us) and self.trials >= _FAILING
        useless = self.stale >= self.patience or self.hopeless >= _HOPELESS or failing
        return self.exhausted or self.trials >= self.limit or useless

    @property
    def expected_saving_us(self) -> float:
        """Microseconds of the whole model that the next round may save."""
        if math.isinf(self.best_us):
            return math.inf
        prior = _FIRST_SHARE / 2 ** (max(self.trials - _HALF_TRIALS, 0) / _HALF_TRIALS)
        share = prior if self.promise is None else (prior + self.promise) / 2
        return float(self.count * self.best_us * share)


def next_task(budgets: Sequence[TaskBudget], seconds: Sequence[float] | None = None) -> int | None:
    """Index of the task that gets the next round, None when all are done.

    That is the one whose round may save most of the model's time: its calls times its current time times the share that
    is expected to fall. seconds: what a trial of each task takes; where time is limited, what counts is the saving by
    second.
    """
    open_tasks = [index for index, budget in enumerate(budgets) if not budget.done]

    def worth(index: int) -> float:
        return budgets[index].expected_saving_us / (1.0 if seconds is None else seconds[index])

    return max(open_tasks, key=worth, default=None)
