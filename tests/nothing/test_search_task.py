"""The search of one task: what is measured first, and from which records it learns."""

from __future__ import annotations

import dataclasses
import random

import msgspec
from search_cases import TARGET, make_task, measured, templates

from sparsetvm.core.config import Config
from sparsetvm.core.record import Record
from sparsetvm.core.target import device_fingerprint
from sparsetvm.core.task import Task
from sparsetvm.search.budget import TuneOptions
from sparsetvm.search.candidates import candidates_of
from sparsetvm.search.outcome import RecordMaker
from sparsetvm.search.random_search import draw_unseen
from sparsetvm.search.task_search import TaskSearch

OPTIONS = TuneOptions(effort="max")


def records_of(task: Task, n: int, seed: int = 0) -> list[Record]:
    candidates, maker = candidates_of(task.workload, TARGET, templates), RecordMaker(device_fingerprint(TARGET), 0, "r")
    configs = draw_unseen(candidates, set(), random.Random(seed), n)
    return [maker.record(task, candidates, measured(task, config), "search") for config in configs]


def search(task: Task, **more: object) -> TaskSearch:
    candidates, device = candidates_of(task.workload, TARGET, templates), device_fingerprint(TARGET)
    return TaskSearch(task, candidates, TARGET, OPTIONS, **{"device": device, "seed": 0, **more})


def go(found: TaskSearch, trials: int, batch: int = 4) -> float:
    while found.budget.trials < trials and (configs := found.next_batch(batch)):
        results = [measured(found.task, config) for config in configs]
        for result in results:
            found.note(result)
        found.end_round(results)
    return found.best_us


def test_a_batch_is_filled_up_behind_defaults_and_seeds() -> None:
    task = make_task()
    found = search(task)
    batch = found.next_batch(8)
    assert batch[:2] == found.candidates.first()
    assert len(set(batch)) == 8


def test_defaults_of_further_templates_are_explored_before_random_configs() -> None:
    task = make_task()
    found = search(task)
    assert [c.template for c in found.candidates.first()] == ["test.sparse", "test.dense"]
    assert found.candidates.later() == []
    only_dense_first = dataclasses.replace(found.candidates, choices=found.candidates.choices[::-1])
    assert [c.template for c in only_dense_first.first()] == ["test.dense", "test.sparse"]
    third = dataclasses.replace(found.candidates.choices[0], name="test.third", default=Config.of("test.third", a=1))
    more = dataclasses.replace(found.candidates, choices=(*found.candidates.choices, third))
    assert more.later() == [third.default]


def test_trials_never_repeat_themselves_with_seeds_and_training() -> None:
    task = make_task()
    seeds = draw_unseen(candidates_of(task.workload, TARGET, templates), set(), random.Random(3), 4)
    found = search(task, seeds=seeds, training=records_of(make_task(k=256, digest="o"), 100))
    go(found, 60)
    assert len({result.config for result in found.results}) == len(found.results) == 60
    assert set(seeds) <= {result.config for result in found.results[:6]}


def test_records_of_other_layers_guide_the_first_trials() -> None:
    task = make_task()
    training = records_of(make_task(m=512, k=384, digest="o"), 200)
    assert go(search(task, training=training), 12) < go(search(task), 12)


def test_records_of_the_same_layer_on_another_machine_guide_the_first_trials() -> None:
    task = make_task()
    elsewhere = msgspec.structs.replace(device_fingerprint(TARGET), model="another")
    training = [
        msgspec.structs.replace(r, device=elsewhere, times_us=tuple(3 * t for t in r.times_us))
        for r in records_of(task, 200)
    ]
    assert go(search(task, training=training), 8) < go(search(task), 8)


def test_every_round_tells_how_well_it_was_predicted() -> None:
    found = search(make_task())
    go(found, 40)
    assert len(found.rank_correlations) == 10
    assert found.rank_correlations[0] is None
    assert found.rank_correlations[-1] is not None


def test_a_search_without_the_model_predicts_nothing() -> None:
    found = search(make_task(), guided=False)
    go(found, 24)
    assert set(found.rank_correlations) == {None}
    assert found.budget.promise is None
