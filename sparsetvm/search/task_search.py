"""The search of one task: its strategy, what was measured, and the best configs so far."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence

from sparsetvm.core.config import Config
from sparsetvm.core.record import Record
from sparsetvm.core.target import DeviceFingerprint, Target
from sparsetvm.core.task import Task
from sparsetvm.errors import NoCandidateError
from sparsetvm.search.budget import TaskBudget, TuneOptions, starts_broad
from sparsetvm.search.candidates import Candidates
from sparsetvm.search.cost_model import CostModel, Sample, samples_of
from sparsetvm.search.evolutionary import EvolutionarySearch
from sparsetvm.search.trial import Measured

_LIKELY = 3  # configs of each sparse template in a broad first round


class TaskSearch:
    """State of one task's search.

    device: what it is measured on; records of other models say less to the cost model. seeds: configs that were good
    for tasks like it. skip: configs that are known to fail. earlier: records of exactly this task, from which an
    interrupted run goes on. training: records of other tasks and machines for the cost model.
    guided: False leaves the cost model out, to compare with.
    """

    def __init__(
        self,
        task: Task,
        candidates: Candidates,
        target: Target,
        options: TuneOptions,
        *,
        device: DeviceFingerprint,
        seed: int,
        seeds: Sequence[Config] = (),
        skip: Iterable[Config] = (),
        training: Sequence[Record] = (),
        earlier: Sequence[Record] = (),
        guided: bool = True,
    ) -> None:
        self.task = task
        self.candidates = candidates
        self.results: list[Measured] = []
        self.rank_correlations: list[float | None] = []  # after each round
        self._best: dict[Config, float] = {}
        self._failed: dict[Config, str] = {}
        self._model = CostModel(task.workload, target, seed) if guided else None
        if self._model is not None:
            own = {(record.config, record.time) for record in earlier}
            others = [r for r in training if r.workload != task.workload or (r.config, r.time) not in own]
            self._model.transfer(samples_of(others, device.model))
            self._model.fit()
        rng = random.Random(f"{seed} {task.workload.id}")  # noqa: S311
        broad = candidates.broad(_LIKELY) if starts_broad(target) else []
        first = dict.fromkeys([*candidates.first(), *(c for c in seeds if candidates.contains(c)), *broad])
        # The strategy need not propose what is measured first anyway.
        self.strategy = EvolutionarySearch(candidates, task.workload, self._model, rng, [*skip, *first])
        limit = options.task_limit(dense_only=candidates.dense_only)
        self.budget = TaskBudget(task.count, limit, options.patience, options.preset.least_gain)
        self._go_on(earlier)
        avoided = {*skip, *self._best, *self._failed}
        self._first = [config for config in first if config not in avoided]

    @property
    def best_us(self) -> float:
        return min(self._best.values(), default=math.inf)

    @property
    def dense_us(self) -> float | None:
        """Best time of a dense config, None when none succeeded."""
        return min((us for config, us in self._best.items() if self.candidates.is_dense(config)), default=None)

    @property
    def opening(self) -> int:
        """How many defaults, seeds and likely configs are still to be measured."""
        return len(self._first)

    def next_batch(self, size: int) -> list[Config]:
        """What to measure next: first the defaults and seeds, then what the strategy proposes."""
        size = min(size, max(0, self.budget.limit - self.budget.trials))
        batch, self._first = self._first[:size], self._first[size:]
        if len(batch) < size:
            batch += self.strategy.propose(size - len(batch))
        self.budget.exhausted = not batch
        return batch

    def note(self, result: Measured) -> None:
        """Take one result in as soon as it is there."""
        self.results.append(result)
        if result.ok:
            self._best[result.config] = min(result.best_us, self._best.get(result.config, math.inf))
        else:
            self._failed[result.config] = f"{result.status}: {result.message}" if result.message else result.status

    def end_round(self, results: Sequence[Measured]) -> None:
        """Learn from a finished round."""
        self.strategy.observe(results)
        self.budget.observe([result.best_us for result in results], self.strategy.expected_gain())
        self.rank_correlations.append(self.strategy.rank_correlation)

    def learn_from(self, samples: Sequence[Sample]) -> None:
        """Train on what other tasks of this run have measured."""
        if self._model is not None:
            self._model.transfer(samples)

    def finalists(self, top_k: int) -> list[Config]:
        """The `top_k` fastest configs and the fastest dense one."""
        ranked = sorted(self._best, key=self._best.__getitem__)
        dense = [config for config in ranked if self.candidates.is_dense(config)]
        return list(dict.fromkeys([*ranked[:top_k], *dense[:1]]))

    def settle(self, finals: Sequence[Measured]) -> Measured:
        """The winner of the final round; a dense config wins ties. A config that failed there is out.

        Raises NoCandidateError when nothing has ever worked.
        """
        good = [result for result in finals if result.ok]
        broken = {result.config for result in finals if not result.ok}
        if good:
            return min(good, key=lambda r: (r.best_us, not self.candidates.is_dense(r.config)))
        rest = {config: us for config, us in self._best.items() if config not in broken}
        if rest:
            config = min(rest, key=rest.__getitem__)
            return Measured(config=config, status="ok", times_us=(rest[config],))
        first = next(iter(self._failed.values()), "")
        raise NoCandidateError(
            f"none of {len(self._failed)} candidates works; the first failed with {first}",
            layer=self.task.name,
            hint="run `sparsetvm doctor`; if it finds nothing, report the failure with the tuning log",
        )

    def _go_on(self, earlier: Sequence[Record]) -> None:
        known = [
            Measured(config=r.config, status=r.status, times_us=r.times_us, message=r.message)
            for r in earlier
            if r.stage == "search" and self.candidates.contains(r.config)
        ]
        if known:
            for result in known:
                self.note(result)
            self.results.clear()  # they are no trials of this run
            self.strategy.observe(known)
            self.budget.observe([result.best_us for result in known], self.strategy.expected_gain())
