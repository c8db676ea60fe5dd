"""A cost model on gradient-boosted trees: which of many configs are worth a measurement (the idea is AutoTVM's, 2018).

Two small ensembles predict how much slower a config is than the best one, as a logarithm:
1. the prior, from records of other layers and machines. Times of different layers compare only by their relation to
   the best of their own layer, so that is what it learns, with shapes and pattern among its features;
2. on top of it, a correction from what was measured of this task. It alone is trained again after each round, from few
   samples, which takes milliseconds.

A model lives as long as one tuning run and is trained from records, never stored: there is no model file that could be
wrong, stale or hostile.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sparsetvm.core.config import Config
from sparsetvm.core.record import Record
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload
from sparsetvm.errors import EnvironmentProblem
from sparsetvm.log.relation import distance
from sparsetvm.search.features import Columns, config_features, feature_matrix, features, workload_features

_MIN_OWN, _MIN_OTHERS = 6, 12
_COMMON = {"objective": "reg:squarederror", "nthread": 1, "tree_method": "hist", "verbosity": 0, "lambda": 0.5}
_PRIOR = {**_COMMON, "max_depth": 5, "eta": 0.1, "subsample": 0.8, "colsample_bytree": 0.5}
_OWN = {**_COMMON, "max_depth": 3, "eta": 0.2, "subsample": 0.9, "colsample_bytree": 0.8, "min_child_weight": 0.3}
_PRIOR_TREES, _OWN_TREES = 100, 60
# How slow a slow config is teaches nothing about the fast ones: beyond e times the best, all are alike; failures are
# worse than any.
_CAP, _FAILED = 1.0, 1.7
_HALF_DISTANCE = 4.0  # records of a workload this unlike (log.relation.distance) count half
_OTHER_DEVICE = 1.0  # added to the distance
_RETRAIN = 1.5  # the prior is trained again when it may use this many times the samples


@dataclass(frozen=True)
class Sample:
    """One measured time in microseconds, infinity for a failure. device: model of the machine, "" for this one."""

    workload: Workload
    config: Config
    time_us: float
    device: str = ""


@dataclass
class Encoded:
    """Configs of the model's task with their features, computed once. prior: of the prior with number `version`."""

    size: int
    columns: Columns
    prior: np.ndarray | None = None
    version: int = 0


@dataclass
class _Prior:
    """What other tasks teach."""

    samples: list[Sample] = field(default_factory=list)
    booster: Any = None
    names: list[str] = field(default_factory=list)
    trained_on: int = 0
    version: int = 0


class CostModel:
    """Predicts for one task. Deterministic for a seed and a sequence of calls."""

    def __init__(self, workload: Workload, target: Target, seed: int = 0) -> None:
        self._workload = workload
        self._target = target
        self._seed = seed
        self._times: dict[Config, float] = {}
        self._prior = _Prior()
        self._booster: Any = None
        self._names: list[str] = []
        self._offset = 0.0  # how much slower than the prior thinks this task's configs are, on average

    @property
    def trained(self) -> bool:
        return self._booster is not None or self._prior.booster is not None

    def add(self, samples: Sequence[Sample]) -> None:
        """Add measurements of the model's own task; `fit` makes them count. The last time of a config is kept."""
        self._times.update((sample.config, sample.time_us) for sample in samples)

    def transfer(self, samples: Sequence[Sample]) -> None:
        """Add measurements of other tasks or machines; `fit` makes them count."""
        self._prior.samples += samples

    def fit(self) -> bool:
        """Train from all samples; False while there are too few, or none that succeeded."""
        if len(self._prior.samples) >= max(_MIN_OTHERS, _RETRAIN * self._prior.trained_on):
            self._fit_prior()
        best = min(self._times.values(), default=math.inf)
        if len(self._times) >= (_MIN_OWN if self._prior.booster is None else 1) and math.isfinite(best):
            self._fit_own(best)
        return self.trained

    def encode(self, configs: Sequence[Config]) -> Encoded:
        """Features of configs, for `relative`."""
        return Encoded(len(configs), config_features(self._workload, configs, self._target))

    def relative(self, encoded: Encoded) -> np.ndarray:
        """Predicted log(time / best time so far). Raises ValueError before `fit` succeeded."""
        if not self.trained:
            raise ValueError("the cost model is not trained yet")
        margin = self._prior_of(encoded) + self._offset
        if self._booster is None or not encoded.size:
            return margin
        matrix = feature_matrix(encoded.columns, self._names, encoded.size)
        return np.asarray(self._booster.inplace_predict(matrix, base_margin=margin), np.float64)

    def predict_us(self, configs: Sequence[Config]) -> np.ndarray:
        """Predicted microseconds. Raises ValueError before `fit` succeeded, or while no config of the task worked."""
        relative = self.relative(self.encode(configs))
        best = min(self._times.values(), default=math.inf)
        if not math.isfinite(best):
            raise ValueError("no config of this task has a time yet")
        return np.exp(relative) * best

    def _fit_own(self, best: float) -> None:
        configs = list(self._times)
        labels = np.array([_label(time, best) for time in self._times.values()])
        encoded = self.encode(configs)
        margin = self._prior_of(encoded)
        self._offset = float((labels - margin).mean())
        self._names = sorted(encoded.columns)
        data = _xgboost().DMatrix(
            feature_matrix(encoded.columns, self._names, encoded.size),
            label=labels, base_margin=margin + self._offset, nthread=1,
        )  # fmt: skip
        self._booster = _xgboost().train({**_OWN, "seed": self._seed}, data, num_boost_round=_OWN_TREES)

    def _fit_prior(self) -> None:
        """Train the prior from all tasks of which a config worked and another one is known."""
        groups: defaultdict[tuple[Workload, str], list[Sample]] = defaultdict(list)
        for sample in self._prior.samples:
            groups[sample.workload, sample.device].append(sample)
        blocks: list[tuple[Columns, int]] = []
        labels: list[float] = []
        weights: list[float] = []
        for (workload, device), members in groups.items():
            best = min(sample.time_us for sample in members)
            if len(members) > 1 and math.isfinite(best):
                blocks.append((features(workload, [s.config for s in members], self._target), len(members)))
                labels += [_label(sample.time_us, best) for sample in members]
                apart = distance(workload, self._workload) + _OTHER_DEVICE * bool(device)
                weights += [2.0 ** (-apart / _HALF_DISTANCE)] * len(members)
        self._prior.trained_on = len(self._prior.samples)
        if len(labels) < _MIN_OTHERS:
            return
        names = sorted(set().union(*(columns for columns, _ in blocks)))
        matrix = np.concatenate([feature_matrix(columns, names, size) for columns, size in blocks])
        data = _xgboost().DMatrix(matrix, label=labels, weight=weights, nthread=1)
        self._prior.booster = _xgboost().train({**_PRIOR, "seed": self._seed}, data, num_boost_round=_PRIOR_TREES)
        self._prior.names = names
        self._prior.version += 1

    def _prior_of(self, encoded: Encoded) -> np.ndarray:
        """What the prior says of each config, 0 without one."""
        if self._prior.booster is None or not encoded.size:
            return np.zeros(encoded.size)
        if encoded.prior is None or encoded.version != self._prior.version:
            own = workload_features(self._workload, self._target)
            columns = {**encoded.columns, **{name: np.float32(value) for name, value in own.items()}}
            matrix = feature_matrix(columns, self._prior.names, encoded.size)
            encoded.prior = np.asarray(self._prior.booster.inplace_predict(matrix), np.float64)
            encoded.version = self._prior.version
        return encoded.prior


def _label(time_us: float, best_us: float) -> float:
    return min(math.log(max(time_us, 1e-3) / max(best_us, 1e-3)), _CAP) if math.isfinite(time_us) else _FAILED


def samples_of(records: Sequence[Record], device: str = "") -> list[Sample]:
    """Samples from records, failures included. device: model of this machine; records of others are marked."""
    return [
        Sample(r.workload, r.config, r.best_us, "" if r.device.model == device else r.device.model)
        for r in records
        if r.status != "invalid"
    ]


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
