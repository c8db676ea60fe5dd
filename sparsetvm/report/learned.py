"""What the cost model would have said of trials before they were measured, and what it looks at.

Models are not stored (search/cost_model.py), so the trials of each task are replayed in order: a model that is trained
on the first ones predicts the next ones. Transfer from other tasks, which a tune also uses, is left out.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from sparsetvm.core.record import Record
from sparsetvm.core.target import Target
from sparsetvm.search.cost_model import CostModel, samples_of, spearman

_TASKS, _TRIALS = 16, 256  # at most, so that a report takes seconds
_FIRST = 8  # trials before the first prediction
_STEPS = 6  # predictions per task


@dataclass
class Learned:
    """points: (predicted, measured), both over the best time of their task. importance: share by feature, mean over
    tasks. tasks: how many it comes from. correlation: mean over tasks of Spearman's; None without any.
    """

    points: list[tuple[float, float]] = field(default_factory=list)
    importance: dict[str, float] = field(default_factory=dict)
    tasks: int = 0
    correlation: float | None = None


def learn(trials: Sequence[Sequence[Record]], target: Target) -> Learned:
    """From the search trials of tasks, each in the order of measurement; those with most trials are taken."""
    learned = Learned()
    shares: defaultdict[str, float] = defaultdict(float)
    correlations: list[float] = []
    for records in sorted(trials, key=len, reverse=True)[:_TASKS]:
        known = [record for record in records if record.status != "invalid"][:_TRIALS]
        if len(known) <= _FIRST:
            continue
        model, points = _replay(known, target)
        learned.points += points
        for name, share in model.importance().items():
            shares[name] += share
        learned.tasks += 1
        if len(points) >= 3:
            correlations.append(spearman(*np.log(np.array(points)).T))
    total = sum(shares.values()) or 1.0
    learned.importance = {name: share / total for name, share in sorted(shares.items(), key=lambda item: -item[1])}
    learned.correlation = sum(correlations) / len(correlations) if correlations else None
    return learned


def _replay(records: Sequence[Record], target: Target) -> tuple[CostModel, list[tuple[float, float]]]:
    """The model after all trials, and its predictions on the way."""
    best = min(record.best_us for record in records)
    model = CostModel(records[0].workload, target)
    step = max(4, math.ceil((len(records) - _FIRST) / _STEPS))
    points: list[tuple[float, float]] = []
    model.add(samples_of(records[:_FIRST]))
    for start in range(_FIRST, len(records), step):
        following = records[start : start + step]
        good = [record for record in following if record.status == "ok"]
        if model.fit() and good and any(record.status == "ok" for record in records[:start]):
            predicted = model.predict_us([record.config for record in good])
            points += [(us / best, record.best_us / best) for us, record in zip(predicted.tolist(), good, strict=True)]
        model.add(samples_of(following))
    model.fit()
    return model, points
