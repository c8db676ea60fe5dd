"""Evolutionary search ranked by the cost model: measure what is predicted fastest, a few at random, a few nearby.

A space of moderate size is ranked whole. Of a larger one the candidates are random configs and generations of children
of the best (the union of several templates' spaces is one population; a config is crossed only with its own kind).
Without a trained model the best config is varied, one knob at a time.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Sequence

import numpy as np

from sparsetvm.core.config import Config
from sparsetvm.core.workload import Workload
from sparsetvm.search.candidates import Candidates
from sparsetvm.search.cost_model import CostModel, Encoded, Sample, spearman
from sparsetvm.search.random_search import draw_unseen
from sparsetvm.search.trial import Measured
from sparsetvm.search.whole_space import WholeSpace

_WHOLE = 1 << 14  # configs of a space that is ranked whole: about 50 ms once and 10 ms per round
_POPULATION = 24  # best measured configs that have children
_POOL = 1536  # candidates ranked per batch in a larger space
_GENERATIONS = 3
_CROSSOVER = 0.35
_RANDOM = 0.1  # share of trials that is random whatever the model says, ...
_RANDOM_WHEN_BAD = 0.25  # ... and when its last predictions were of no use
_LOCAL = 0.2  # share that is one step from the best measured configs: trees know little between samples
_LOCAL_PARENTS = 3
_FORETOLD, _MIN_FORETOLD = 32, 6
_STEP = 0.1  # what a knob that differs from the best config's counts as, over the square root of the samples
_MIN_CORRELATION = 0.3  # below this the predictions are called bad


class EvolutionarySearch:
    """Search of one task, guided by `model` unless that is None. `skip` are configs never to be proposed."""

    def __init__(
        self,
        candidates: Candidates,
        workload: Workload,
        model: CostModel | None,
        rng: random.Random,
        skip: Iterable[Config] = (),
    ) -> None:
        self._candidates = candidates
        self._workload = workload
        self._model = model
        self._rng = rng
        self._seen: set[Config] = set(skip)
        self._times: dict[Config, float] = {}
        self._whole: WholeSpace | None = None
        self._order: np.ndarray | None = None  # of the whole space, until the model is trained again
        self._credit = {"random": 0.0, "local": 0.0}  # trials that are due by their shares
        self._foretold: list[tuple[float, float]] = []  # (predicted, measured) logarithms of configs that were new
        self._correlation: float | None = None

    def propose(self, n: int) -> list[Config]:
        """Up to `n` unseen configs: those predicted fastest, some near the best, some at random."""
        if self._model is None or not self._model.trained:
            chosen = self._unguided(n)
        else:
            bad = self._correlation is not None and self._correlation < _MIN_CORRELATION
            explore = self._due("random", n, _RANDOM_WHEN_BAD if bad else _RANDOM)
            near = self._ranked(self._near(self._parents()[:_LOCAL_PARENTS]))[: self._due("local", n, _LOCAL)]
            chosen = near[: n - explore]
            best = self._best_unseen(n)
            chosen += [config for config in best if config not in chosen][: n - explore - len(chosen)]
            chosen += self._explored(n - len(chosen), chosen)
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
        if self._model is not None and samples:
            self._model.add(samples)
            self._model.fit()
            self._order = None

    def expected_gain(self) -> float | None:
        """Share of the best time that the best unseen config is expected to save; None while nothing was predicted.

        The expectation is over a normal error as large as those of the last predictions ("expected improvement", Jones
        et al., 1998): the worse they were, the more may be left.
        """
        if self._model is None or len(self._foretold) < _MIN_FORETOLD:
            return None
        promise = self._promise()
        if promise is None:
            return 0.0
        recent = np.array(self._foretold[-_FORETOLD:])
        # Half of the errors are smaller than this; a few large ones say nothing about fast configs.
        sigma = max(1.48 * float(np.median(np.abs(recent[:, 0] - recent[:, 1]))), 1e-6)
        z = -promise / sigma
        density = math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
        saved = sigma * (z * 0.5 * math.erfc(-z / math.sqrt(2)) + density)
        return 1.0 - math.exp(-saved)

    @property
    def rank_correlation(self) -> float | None:
        """Spearman correlation of the last predictions with what was then measured; None for too few."""
        return self._correlation

    def _compare(self, samples: Sequence[Sample]) -> None:
        if self._model is not None and self._model.trained and self._times and samples:
            predicted = self._model.predict_us([sample.config for sample in samples])
            self._foretold += [
                (math.log(p), math.log(max(s.time_us, 1e-3))) for p, s in zip(predicted, samples, strict=True)
            ]
            recent = np.array(self._foretold[-_FORETOLD:])
            if len(recent) >= _MIN_FORETOLD:
                self._correlation = spearman(recent[:, 0], recent[:, 1])

    def _due(self, kind: str, n: int, share: float) -> int:
        """How many of the next `n` trials are of a kind, so that in the long run it has its share."""
        self._credit[kind] += share * n
        due = min(int(self._credit[kind]), n)
        self._credit[kind] -= due
        return due

    def _unguided(self, n: int) -> list[Config]:
        """The best with one knob changed, by any step: what each knob does is soon known. A few at random."""
        changed = [c for best in self._parents()[:1] for c in self._candidates.variants(best) if c not in self._seen]
        self._rng.shuffle(changed)
        chosen = changed[: n - self._due("random", n, _RANDOM_WHEN_BAD)]
        return chosen + self._explored(n - len(chosen), chosen)

    def _explored(self, n: int, chosen: Sequence[Config]) -> list[Config]:
        """`n` configs whatever the model says: defaults of templates that were not tried yet, then random ones."""
        avoided = self._seen | set(chosen)
        defaults = [config for config in self._candidates.later() if config not in avoided][:n]
        return defaults + draw_unseen(self._candidates, avoided | set(defaults), self._rng, n - len(defaults))

    def _near(self, configs: Sequence[Config]) -> list[Config]:
        """Unseen configs one step from the given ones."""
        steps = dict.fromkeys(near for config in configs for near in self._candidates.neighbours(config))
        return [config for config in steps if config not in self._seen]

    def _parents(self) -> list[Config]:
        return sorted(self._times, key=self._times.__getitem__)[:_POPULATION]

    def _best_unseen(self, n: int) -> list[Config]:
        """The `n` unseen configs predicted fastest."""
        if self._candidates.cardinality > _WHOLE:
            return self._ranked(self._bred())[:n]
        space = self._describe_whole()
        if self._order is None:
            self._order = (self._predict(space.encoded) + self._strangeness()).argsort(kind="stable")
        unseen = (space.configs[at] for at in self._order if space.configs[at] not in self._seen)
        return list(itertools.islice(unseen, n))

    def _strangeness(self) -> np.ndarray | float:
        """What to add to predictions of the whole space for every knob in which a config differs from the best one.

        From few samples a model calls many configs equal; of those, the ones like the best are worth more.
        """
        if not self._times:
            return 0.0
        differing = self._describe_whole().differing(self._parents()[0])
        return _STEP / math.sqrt(len(self._times)) * differing

    def _promise(self) -> float | None:
        """Predicted log(time / best time) of the unseen config that is predicted fastest; None when all were seen."""
        best = self._best_unseen(1)
        return float(self._predict(self._encode(best))[0]) if best else None

    def _describe_whole(self) -> WholeSpace:
        if self._whole is None:
            configs = self._candidates.unseen(set(), _WHOLE)
            self._whole = WholeSpace(configs, self._encode(configs))
        return self._whole

    def _bred(self) -> list[Config]:
        """Unseen configs of a large space: random ones and generations of children."""
        pool = dict.fromkeys(draw_unseen(self._candidates, self._seen, self._rng, _POOL // 2))
        parents = self._parents()
        for _ in range(_GENERATIONS if parents else 0):
            children = [self._child(parents) for _ in range(_POOL // (2 * _GENERATIONS))]
            pool.update(dict.fromkeys(child for child in children if child not in self._seen))
            parents = self._ranked(list(dict.fromkeys([*parents, *pool])))[:_POPULATION]
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

    def _ranked(self, configs: Sequence[Config]) -> list[Config]:
        return [configs[at] for at in self._predict(self._encode(configs)).argsort(kind="stable")] if configs else []

    def _guide(self) -> CostModel:
        if self._model is None:
            raise ValueError("a search without a model ranks nothing")
        return self._model

    def _encode(self, configs: Sequence[Config]) -> Encoded:
        return self._guide().encode(configs)

    def _predict(self, encoded: Encoded) -> np.ndarray:
        return self._guide().relative(encoded)
