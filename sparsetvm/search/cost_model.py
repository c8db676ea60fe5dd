"""A cost model on gradient-boosted trees: which of many configs are worth a measurement (the idea is AutoTVM's, 2018).

It predicts log(time / dense flops), so that records of other shapes teach it too. It lives as long as one tuning run
and is trained from records, never stored: there is no model file that could be wrong, stale or hostile.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsetvm.core.config import Config
from sparsetvm.core.record import Record
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload
from sparsetvm.errors import EnvironmentProblem
from sparsetvm.search.features import config_features, feature_matrix, feature_names, features, workload_features

_MIN_SAMPLES = 6
_TREES = 80
_PARAMETERS = {
    "objective": "reg:squarederror",
    "max_depth": 4,
    "eta": 0.2,
    "min_child_weight": 1.0,
    "subsample": 0.9,
    "colsample_bytree": 0.8,
    "lambda": 1.0,
    "nthread": 1,
    "tree_method": "hist",
    "verbosity": 0,
}
# Times of other tasks say less about this one than its own.
_OWN_WEIGHT, _FAMILY_WEIGHT, _OTHER_WEIGHT = 1.0, 0.6, 0.25
_FAILURE_FACTOR = 2.0  # a failed config counts as this much slower than the slowest good one


@dataclass(frozen=True)
class Sample:
    """One measured time in microseconds, infinity for a failure."""

    workload: Workload
    config: Config
    time_us: float


class CostModel:
    """Predicts times for one task. Deterministic for a seed and a sequence of calls."""

    def __init__(self, workload: Workload, target: Target, seed: int = 0) -> None:
        self._workload = workload
        self._target = target
        self._seed = seed
        self._samples: list[Sample] = []
        self._rows: list[dict[str, float]] = []
        self._names: list[str] = []
        self._booster: Any = None
        self._own_id = workload.id
        self._own_family = workload.family
        self._weights: dict[Workload, float] = {}
        self._base = workload_features(workload, target)

    @property
    def trained(self) -> bool:
        return self._booster is not None

    def add(self, samples: Sequence[Sample]) -> None:
        """Add measurements; `fit` makes them count."""
        self._samples += samples
        self._rows += [features(s.workload, s.config, self._target) for s in samples]

    def fit(self) -> bool:
        """Train from all samples; False while there are too few, or none that succeeded."""
        good = [s for s in self._samples if math.isfinite(s.time_us)]
        if len(good) < _MIN_SAMPLES:
            return False
        xgboost = _xgboost()
        worst: dict[Workload, float] = {}
        for sample in good:
            worst[sample.workload] = max(worst.get(sample.workload, 0.0), sample.time_us)
        kept = [at for at, s in enumerate(self._samples) if s.workload in worst]
        labels = [self._label(self._samples[at], worst) for at in kept]
        weights = [self._weight(self._samples[at].workload) for at in kept]
        rows = [self._rows[at] for at in kept]
        self._names = feature_names(rows)
        data = xgboost.DMatrix(feature_matrix(rows, self._names), label=labels, weight=weights)
        self._booster = xgboost.train({**_PARAMETERS, "seed": self._seed}, data, num_boost_round=_TREES)
        return True

    def predict_us(self, configs: Sequence[Config]) -> np.ndarray:
        """Predicted microseconds of configs of the model's own task. Raises ValueError before `fit` succeeded."""
        if self._booster is None:
            raise ValueError("the cost model is not trained yet")
        if not configs:
            return np.zeros(0)
        rows = [{**self._base, **config_features(self._workload, config, self._target)} for config in configs]
        data = _xgboost().DMatrix(feature_matrix(rows, self._names))
        predicted: np.ndarray = (
            np.exp(self._booster.predict(data).astype(np.float64)) * self._workload.dense_flops * 1e-3
        )
        return predicted

    def rank_correlation(self, samples: Sequence[Sample]) -> float | None:
        """Spearman correlation of predicted and measured times; None when untrained or for fewer than 3 successes."""
        good = [s for s in samples if math.isfinite(s.time_us)]
        if self._booster is None or len(good) < 3:
            return None
        return spearman(self.predict_us([s.config for s in good]), np.array([s.time_us for s in good]))

    def _label(self, sample: Sample, worst: dict[Workload, float]) -> float:
        time = sample.time_us if math.isfinite(sample.time_us) else _FAILURE_FACTOR * worst[sample.workload]
        return math.log(max(time, 1e-3) / (sample.workload.dense_flops * 1e-3))

    def _weight(self, workload: Workload) -> float:
        if workload not in self._weights:
            if workload.id == self._own_id:
                weight = _OWN_WEIGHT
            else:
                weight = _FAMILY_WEIGHT if workload.family == self._own_family else _OTHER_WEIGHT
            self._weights[workload] = weight
        return self._weights[workload]


def samples_of(records: Sequence[Record]) -> list[Sample]:
    """Samples from records, failures included; a config that was timed twice counts twice."""
    return [Sample(r.workload, r.config, r.best_us) for r in records if r.status != "invalid"]


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation in [-1, 1], ties sharing their mean rank; 0 when one side is constant."""
    from scipy.stats import rankdata

    ranks = rankdata(a), rankdata(b)
    if ranks[0].std() == 0 or ranks[1].std() == 0:
        return 0.0
    return float(np.corrcoef(*ranks)[0, 1])


def _xgboost() -> Any:
    try:
        import xgboost
    except ImportError as problem:
        raise EnvironmentProblem(
            f"the cost model needs XGBoost: {problem}", hint="pip install xgboost-cpu"
        ) from problem
    return xgboost
