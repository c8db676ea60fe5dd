"""Evolutionary search ranked by the cost model: mutate and cross the best configs, measure those predicted fastest.

The union of several templates' spaces is one population; a config is crossed only with its own kind.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence

import numpy as np

from sparsetvm.core.config import Config
from sparsetvm.core.workload import Workload
from sparsetvm.search.candidates import Candidates
from sparsetvm.search.cost_model import CostModel, Sample, spearman
from sparsetvm.search.random_search import draw_unseen
from sparsetvm.search.trial import Measured

_POPULATION = 24  # best measured configs that have children
_POOL = 2048  # candidates ranked per batch; below this many unseen configs all of them are
_GENERATIONS = 3
_EPSILON = 0.2  # share of a batch that is random whatever the model says
_LOCAL = 0.2  # share of a batch that is one step from the best measured configs: trees know little between samples
_LOCAL_PARENTS = 3
_CROSSOVER = 0.35
_FORETOLD, _MIN_FORETOLD = 32, 6
_MIN_CORRELATION = 0.3  # below this the model's promises are not believed


class EvolutionarySearch:
    """XGBoost-guided search of one task. `skip` are configs never to be proposed (known failures)."""

    def __init__(
        self,
        candidates: Candidates,
        workload: Workload,
        model: CostModel,
        rng: random.Random,
        skip: Iterable[Config] = (),
    ) -> None:
        self._candidates = candidates
        self._workload = workload
        self._model = model
        self._rng = rng
        self._seen: set[Config] = set(skip)
        self._times: dict[Config, float] = {}
        self._best_promise: float | None = None
        self._foretold: list[tuple[float, float]] = []  # (predicted, measured) of configs the model had not seen

    def propose(self, n: int) -> list[Config]:
        """The `n` configs predicted fastest among children and random ones, a share of them random."""
        if not self._model.trained:
            chosen = self._unguided(n)
        else:
            ranked = self._rank(self._pool())
            explore, local = (round(_EPSILON * n), round(_LOCAL * n)) if len(ranked) > n else (0, 0)
            near = self._rank(self._near(self._parents()[:_LOCAL_PARENTS]))[:local]
            chosen = list(dict.fromkeys([*near, *ranked[:n]]))[: n - explore]
            if explore:
                chosen += draw_unseen(self._candidates, self._seen | set(chosen), self._rng, explore)
        self._seen.update(chosen)
        return chosen

    def observe(self, results: Sequence[Measured]) -> None:
        """Take results in, note how well they were predicted, train again."""
        samples = [Sample(self._workload, r.config, r.best_us) for r in results if r.status != "invalid"]
        self._compare([sample for sample in samples if math.isfinite(sample.time_us)])
        self._seen.update(r.config for r in results)
        for result in results:
            if result.ok:
                self._times[result.config] = min(result.best_us, self._times.get(result.config, math.inf))
        self._model.add(samples)
        if samples:
            self._model.fit()
        self._best_promise = None

    def expected_gain(self) -> float | None:
        """Share of the best time that the best unseen config saves by prediction; None when predictions were bad."""
        if not self._model.trained or not self._times:
            return None
        if self._best_promise is None:
            pool = self._rank(self._pool())[:1]
            self._best_promise = float(self._model.predict_us(pool)[0]) if pool else math.inf
        best = min(self._times.values())
        correlation = self.rank_correlation
        if correlation is not None and correlation < _MIN_CORRELATION:
            return None
        return max(0.0, 1.0 - self._best_promise / best)

    @property
    def rank_correlation(self) -> float | None:
        """Spearman of predictions made before the measurement, over the last batches; None for too few."""
        recent = np.array(self._foretold[-_FORETOLD:])
        return spearman(recent[:, 0], recent[:, 1]) if len(recent) >= _MIN_FORETOLD else None

    def _compare(self, samples: Sequence[Sample]) -> None:
        if self._model.trained and samples:
            predicted = self._model.predict_us([sample.config for sample in samples])
            self._foretold += [(float(p), s.time_us) for p, s in zip(predicted, samples, strict=True)]

    def _unguided(self, n: int) -> list[Config]:
        """Before there is a model: half around what is known to be good, half random."""
        near = self._near(self._parents()[:_LOCAL_PARENTS])
        self._rng.shuffle(near)
        chosen = near[: n // 2]
        return chosen + draw_unseen(self._candidates, self._seen | set(chosen), self._rng, n - len(chosen))

    def _near(self, configs: Sequence[Config]) -> list[Config]:
        """Unseen configs one step from the given ones."""
        steps = dict.fromkeys(near for config in configs for near in self._candidates.neighbours(config))
        return [config for config in steps if config not in self._seen]

    def _parents(self) -> list[Config]:
        return sorted(self._times, key=self._times.__getitem__)[:_POPULATION]

    def _pool(self) -> list[Config]:
        """Unseen configs to rank: all of a small space, else random ones and generations of children."""
        if self._candidates.cardinality - len(self._seen) <= _POOL:
            return self._candidates.unseen(self._seen, _POOL)
        pool = dict.fromkeys(draw_unseen(self._candidates, self._seen, self._rng, _POOL // 2))
        parents = self._parents()
        for _ in range(_GENERATIONS if parents else 0):
            children = [self._child(parents) for _ in range(_POOL // (2 * _GENERATIONS))]
            pool.update(dict.fromkeys(child for child in children if child not in self._seen))
            parents = self._rank([*parents, *pool])[:_POPULATION]
        return list(pool)

    def _child(self, parents: Sequence[Config]) -> Config:
        # Parents are sorted, the square favours the front.
        parent = parents[int(len(parents) * self._rng.random() ** 2)]
        if self._rng.random() < _CROSSOVER:
            mates = [other for other in parents if other.template == parent.template and other != parent]
            if mates:
                other = dict(self._rng.choice(mates).knobs)
                mixed = {k: other[k] if k in other and self._rng.random() < 0.5 else v for k, v in parent.knobs}
                crossed = Config.of(parent.template, **mixed)
                if self._candidates.contains(crossed):
                    return crossed
        for _ in range(1 + (self._rng.random() < 0.4)):
            steps = self._candidates.neighbours(parent)
            parent = self._rng.choice(steps) if steps else parent
        return parent

    def _rank(self, configs: Sequence[Config]) -> list[Config]:
        predicted = self._model.predict_us(configs)
        return [configs[at] for at in predicted.argsort(kind="stable")]
