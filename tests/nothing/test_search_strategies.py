"""Strategies on a synthetic space: they never repeat themselves, end with the space, and guided beats random."""

from __future__ import annotations

import random
import statistics

import numpy as np
import pytest
from search_cases import TARGET, cost_us, make_task, measured, templates

from sparsetvm.core.config import Config
from sparsetvm.errors import SparseTvmError
from sparsetvm.search.candidates import Candidates, candidates_of
from sparsetvm.search.cost_model import CostModel, Sample, spearman
from sparsetvm.search.evolutionary import EvolutionarySearch
from sparsetvm.search.features import feature_matrix, feature_names, features
from sparsetvm.search.random_search import RandomSearch, draw_unseen
from sparsetvm.search.strategy import Strategy


def evolutionary(task, candidates: Candidates, seed: int, samples: list[Sample] = ()) -> EvolutionarySearch:
    model = CostModel(task.workload, TARGET, seed)
    model.add(samples)
    if samples:
        assert model.fit()
    return EvolutionarySearch(candidates, task.workload, model, random.Random(seed))


def run(task, strategy: Strategy, trials: int, batch: int = 8) -> list[float]:
    """Best time after each trial."""
    best, curve = float("inf"), []
    while len(curve) < trials:
        configs = strategy.propose(min(batch, trials - len(curve)))
        if not configs:
            break
        results = [measured(task, config) for config in configs]
        strategy.observe(results)
        for result in results:
            best = min(best, result.best_us)
            curve.append(best)
    return curve


def samples_of_task(task, n: int, seed: int = 0) -> list[Sample]:
    candidates, rng = candidates_of(task.workload, TARGET, templates), random.Random(seed)
    configs = draw_unseen(candidates, set(), rng, n)
    return [Sample(task.workload, c, measured(task, c).best_us) for c in configs]


@pytest.mark.parametrize("kind", ["random", "evolutionary"])
def test_strategy_proposes_every_config_once_and_then_nothing(kind: str) -> None:
    task = make_task(kind="dense")
    candidates = candidates_of(task.workload, TARGET, templates)
    assert candidates.dense_only
    assert candidates.cardinality == 16
    skipped = Config.of("test.dense", mr=2, nr=1)
    model = CostModel(task.workload, TARGET)
    strategy = (
        RandomSearch(candidates, random.Random(0), [skipped])
        if kind == "random"
        else EvolutionarySearch(candidates, task.workload, model, random.Random(0), [skipped])
    )
    seen = []
    while batch := strategy.propose(4):
        seen += batch
        strategy.observe([measured(task, config) for config in batch])
    assert len(seen) == len(set(seen)) == 15
    assert skipped not in seen
    assert all(candidates.contains(config) for config in seen)


def test_evolutionary_search_is_deterministic_for_a_seed() -> None:
    task = make_task()
    candidates = candidates_of(task.workload, TARGET, templates)
    curves = [run(task, evolutionary(task, candidates, 3), 40) for _ in range(2)]
    assert curves[0] == curves[1]


def test_evolutionary_search_beats_random_search_on_equal_trials() -> None:
    task = make_task()
    candidates = candidates_of(task.workload, TARGET, templates)
    guided = [run(task, evolutionary(task, candidates, seed), 48)[-1] for seed in range(4)]
    blind = [run(task, RandomSearch(candidates, random.Random(seed)), 48)[-1] for seed in range(4)]
    assert statistics.mean(guided) < statistics.mean(blind)
    optimum = min(measured(task, config).best_us for choice in candidates.choices for config in choice.space)
    assert statistics.mean(guided) < 1.05 * optimum


def test_evolutionary_search_starts_better_when_trained_on_another_shape() -> None:
    task, other = make_task(), make_task(m=512, k=384, density=0.15, digest="d1")
    candidates = candidates_of(task.workload, TARGET, templates)
    warm = [run(task, evolutionary(task, candidates, s, samples_of_task(other, 200, s)), 8)[-1] for s in range(4)]
    cold = [run(task, evolutionary(task, candidates, s), 8)[-1] for s in range(4)]
    assert statistics.mean(warm) < statistics.mean(cold)


def test_evolutionary_search_expects_no_gain_when_nothing_is_left() -> None:
    task = make_task(kind="dense")
    strategy = evolutionary(task, candidates_of(task.workload, TARGET, templates), 0)
    assert strategy.expected_gain() is None
    run(task, strategy, 100)
    assert strategy.expected_gain() == 0.0


def test_cost_model_ranks_unseen_configs_of_its_task() -> None:
    task = make_task()
    model = CostModel(task.workload, TARGET)
    assert not model.fit()
    with pytest.raises(ValueError, match="not trained"):
        model.predict_us([Config.of("test.dense", mr=4, nr=2)])
    samples = samples_of_task(task, 260)
    model.add(samples[:200])
    assert model.fit()
    correlation = model.rank_correlation(samples[200:])
    assert correlation is not None
    assert correlation > 0.8
    predicted = model.predict_us([s.config for s in samples[200:]])
    true = np.array([cost_us(task, s.config) for s in samples[200:]])
    assert 0.5 < np.median(predicted / true) < 2.0


def test_cost_model_counts_failures_as_slow() -> None:
    task = make_task()
    model = CostModel(task.workload, TARGET)
    model.add(samples_of_task(task, 400))
    assert model.fit()
    crashing = Config.of("test.sparse", rows=30, k_block=256, groups=4, order="k")
    assert model.predict_us([crashing])[0] > 2 * cost_us(task, crashing.replace(rows=28))


def test_spearman_handles_ties_and_constants() -> None:
    assert spearman(np.array([1.0, 2, 3]), np.array([10.0, 20, 90])) == pytest.approx(1.0)
    assert spearman(np.array([1.0, 2, 3]), np.array([3.0, 2, 1])) == pytest.approx(-1.0)
    assert spearman(np.array([1.0, 1, 1]), np.array([3.0, 2, 1])) == 0.0


def test_features_are_finite_and_tell_configs_apart() -> None:
    task = make_task()
    candidates = candidates_of(task.workload, TARGET, templates)
    rows = [features(task.workload, config, TARGET) for config in draw_unseen(candidates, set(), random.Random(1), 50)]
    assert all(np.isfinite(list(row.values())).all() for row in rows)
    names = feature_names(rows)
    matrix = feature_matrix(rows, names)
    assert matrix.shape == (50, len(names))
    assert len(np.unique(np.nan_to_num(matrix, nan=-1.0), axis=0)) == 50
    assert {"k_block", "order=k", "x_block_per_l1", "row_tail"} <= set(names)


def test_cost_model_names_the_package_when_xgboost_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "xgboost", None)
    task = make_task()
    model = CostModel(task.workload, TARGET)
    model.add(samples_of_task(task, 20))
    with pytest.raises(SparseTvmError, match="XGBoost"):
        model.fit()
