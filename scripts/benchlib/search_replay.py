"""Searches replayed on measured spaces: the time of the config that was the fastest so far, after each trial."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from benchlib.search_table import Table
from sparsetvm.core.config import Config
from sparsetvm.core.workload import Workload
from sparsetvm.log.lookup import RecordIndex
from sparsetvm.log.relation import patterns_alike
from sparsetvm.search.budget import TuneOptions, round_size
from sparsetvm.search.candidates import validator
from sparsetvm.search.random_search import RandomSearch
from sparsetvm.search.replay import ReplayMeasurer
from sparsetvm.search.task_search import TaskSearch
from sparsetvm.search.tuner import SEEDS

Method = Literal["random", "random_defaults", "evolutionary", "guided", "warm"]
"""random_defaults: random after the templates' default configs, with which all but "random" begin. evolutionary: the
search without its model. guided: with it, nothing in the log. warm: guided, with the other tasks' records in the log.
"""
METHODS: tuple[Method, ...] = get_args(Method)
_OPTIONS = TuneOptions(effort="max", trials=10**6)


@dataclass(frozen=True)
class Run:
    """curve: time of the fastest config so far over that of the best config of the space, after each trial.

    order: the configs in the order of their trials. rank_correlation: of the model's predictions, None without one.
    model_seconds: CPU seconds per round that the search itself took.
    """

    curve: list[float]
    order: list[Config]
    rank_correlation: float | None = None
    model_seconds: float = 0.0


def replay(table: Table, method: Method, seed: int, trials: int, others: Sequence[Table] = ()) -> Run:
    """One search on a table, as on the machine that was measured. others: tables whose records are in the log when the
    search is "warm", but for those of the same layer.
    """
    if method in ("random", "random_defaults"):
        order = _blind(table, seed, trials, defaults=method == "random_defaults")
        return Run(curve_of(table, order, trials), order)
    search = _task_search(table, method, seed, others)
    measurer = ReplayMeasurer(lambda _, config: table.seen[config])
    rounds, began = 0, time.process_time()
    while search.budget.trials < trials:
        size = min(round_size(search.budget.trials, _OPTIONS.preset.batch), trials - search.budget.trials)
        configs = search.next_batch(size)
        if not configs:
            break
        results = measurer.measure(table.task, configs, search.note)
        search.end_round(results)
        rounds += 1
    spent = (time.process_time() - began) / max(rounds, 1)
    order = [config for _, config in measurer.asked]
    return Run(curve_of(table, order, trials), order, search.strategy.rank_correlation, spent)


def curve_of(table: Table, order: Sequence[Config], trials: int) -> list[float]:
    """Time of the fastest config so far, relative to the optimum, after each of `trials`.

    Infinity until a config works. A space that is used up leaves the rest of the curve as it is.
    """
    curve = list(itertools.accumulate((table.slower(config) for config in order[:trials]), min))
    return curve + curve[-1:] * (trials - len(curve))


def _blind(table: Table, seed: int, trials: int, *, defaults: bool) -> list[Config]:
    first = table.candidates.first() if defaults else []
    rng = random.Random(f"{seed} {table.task.workload.id}")
    return [*first, *RandomSearch(table.candidates, rng, first).propose(max(0, trials - len(first)))]


def of_other_layers(table: Table, tables: Sequence[Table]) -> list[Table]:
    """The tables whose records teach a search on `table` something without giving it away.

    Left out are the task itself, the same weights with other tokens, and tasks so much alike that tune would take their
    best config without a search.
    """
    ours = table.task.workload

    def same(theirs: Workload) -> bool:
        alike = theirs.family == ours.family and patterns_alike(theirs, ours)
        return alike or theirs.pattern.digest == ours.pattern.digest

    return [other for other in tables if not same(other.task.workload)]


def _task_search(table: Table, method: Method, seed: int, others: Sequence[Table]) -> TaskSearch:
    """The search as the tuner starts it."""
    task, candidates, target, device = table.task, table.candidates, table.target, table.device
    if method != "warm":
        guided = method == "guided"
        return TaskSearch(task, candidates, target, _OPTIONS, device=device, seed=seed, guided=guided)
    index = RecordIndex()
    for other in of_other_layers(table, others):
        for record in other.records:
            index.add(record)
    seeds = index.seeds(task.workload, SEEDS, device, validator(candidates))
    training = index.training(task.workload, device)
    return TaskSearch(
        task, candidates, target, _OPTIONS, device=device, seed=seed, seeds=seeds, training=training
    )  # fmt: skip
