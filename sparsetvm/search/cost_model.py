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
from collections.abc import Iterable, Sequence
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
_PRIOR = {**_COMMON, "max_depth": 4, "eta": 0.15, "subsample": 0.8, "colsample_bytree": 0.5}
_OWN = {**_COMMON, "max_depth": 4, "eta": 0.2, "subsample": 0.9, "colsample_bytree": 0.8, "min_child_weight": 0.3}
_TREES = 60
_FAILED = math.log(2.0)  # a failed config counts as this much slower than the slowest good one
_HALF_DISTANCE = 4.0  # records of a workload this unlike (log.relation.distance) count half
_OTHER_DEVICE = 1.0  # added to the distance
_OTHER_OPERATOR = 2.0
_MOST_OTHERS = 4000  # samples for the prior: more take longer than they help
# The prior is trained again when it may use this many times the samples, until the task has enough of its own.
_RETRAIN, _ENOUGH_OWN = 2.0, 24


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
        wanted = max(_MIN_OTHERS, _RETRAIN * self._prior.trained_on)
        if len(self._prior.samples) >= wanted and len(self._times) < _ENOUGH_OWN:
            self._fit_prior()
        enough = len(self._times) >= (_MIN_OWN if self._prior.booster is None else 1)
        if enough and math.isfinite(min(self._times.values())):
            self._fit_own()
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
        predicted: np.ndarray = np.exp(relative) * best
        return predicted

    def importance(self) -> dict[str, float]:
        """Share that each feature has in what the trees of this task explain (XGBoost's total gain); {} untrained."""
        if self._booster is None:
            return {}
        gains = self._booster.get_score(importance_type="total_gain")  # features are numbered: f0, f1, ...
        total = sum(gains.values()) or 1.0
        return {self._names[int(name[1:])]: gain / total for name, gain in gains.items()}

    def _fit_own(self) -> None:
        configs = list(self._times)
        labels = _labels(self._times.values())
        encoded = self.encode(configs)
        margin = self._prior_of(encoded)
        self._offset = float((labels - margin).mean())
        self._names = sorted(encoded.columns)
        data = _xgboost().DMatrix(
            feature_matrix(encoded.columns, self._names, encoded.size),
            label=labels, base_margin=margin + self._offset, nthread=1,
        )  # fmt: skip
        self._booster = _xgboost().train({**_OWN, "seed": self._seed}, data, num_boost_round=_TREES)

    def _fit_prior(self) -> None:
        """Train the prior from all tasks of which a config worked and another one is known."""
        groups: defaultdict[tuple[Workload, str], list[Sample]] = defaultdict(list)
        for sample in self._prior.samples[:_MOST_OTHERS]:
            groups[sample.workload, sample.device].append(sample)
        blocks: list[tuple[Columns, int]] = []
        labels: list[np.ndarray] = []
        weights: list[float] = []
        for (workload, device), members in groups.items():
            if len(members) > 1 and any(math.isfinite(sample.time_us) for sample in members):
                blocks.append((features(workload, [s.config for s in members], self._target), len(members)))
                labels.append(_labels(sample.time_us for sample in members))
                apart = distance(workload, self._workload) + _OTHER_DEVICE * bool(device)
                apart += _OTHER_OPERATOR * (workload.op != self._workload.op)
                weights += [2.0 ** (-apart / _HALF_DISTANCE)] * len(members)
        self._prior.trained_on = len(self._prior.samples)
        if len(weights) < _MIN_OTHERS:
            return
        names = sorted(set().union(*(columns for columns, _ in blocks)))
        matrix = np.concatenate([feature_matrix(columns, names, size) for columns, size in blocks])
        data = _xgboost().DMatrix(matrix, label=np.concatenate(labels), weight=weights, nthread=1)
        self._prior.booster = _xgboost().train({**_PRIOR, "seed": self._seed}, data, num_boost_round=_TREES)
        self._prior.names = names
        self._prior.version += 1

    def _prior_of(self, encoded: Encoded) -> np.ndarray:
        """What the prior says of each config, 0 without one."""
        if self._prior.booster is None or not encoded.size:
            return np.zeros(encoded.size)
        if encoded.prior is None or encoded.version != self._prior.version:
            own = workload_features(self._workload, self._target)
            columns = {**encoded.columns, **{name: np.full(encoded.size, value) for name, value in own.items()}}
            matrix = feature_matrix(columns, self._prior.names, encoded.size)
            encoded.prior = np.asarray(self._prior.booster.inplace_predict(matrix), np.float64)
            encoded.version = self._prior.version
        return encoded.prior


def _labels(times_us: Iterable[float]) -> np.ndarray:
    """log(time / best) of the times of one task, of which one is finite."""
    times = np.maximum(np.array(list(times_us), np.float64), 1e-3)
    good = np.isfinite(times)
    labels = np.log(times, where=good, out=np.full_like(times, np.nan)) - math.log(times[good].min())
    return np.where(good, labels, labels[good].max() + _FAILED)


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
