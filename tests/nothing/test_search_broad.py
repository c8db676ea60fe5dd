"""Defaults across templates by their estimates, and searches that start broad where trials are cheap."""

from __future__ import annotations

import dataclasses
import math

import msgspec
import pytest
from search_cases import TARGET, Dense, FakeIndex, Sparse, make_task, measured
from sparsetvm.schedules.base import Template

from sparsetvm.core.config import Config
from sparsetvm.core.target import Target
from sparsetvm.core.task import Task
from sparsetvm.core.workload import Workload
from sparsetvm.search.budget import TuneOptions, broad_round_size
from sparsetvm.search.candidates import Candidates, candidates_of
from sparsetvm.search.replay import ReplayMeasurer
from sparsetvm.search.trial import Measured
from sparsetvm.search.tuner import tune_tasks
from sparsetvm.space.knobs import Ordered
from sparsetvm.space.space import Space

GPU = Target("cuda", "x86-64-v3", "sm_90", l2=50 << 20, host=False, sms=132, shared=227 << 10)


class Told(Sparse):
    """A sparse template whose configs take `base` clocks and 100 more for every step away from `best`."""

    def __init__(self, name: str, base: float | None, best: int = 2, preferred: bool = True, fast: bool = True) -> None:
        self.name, self._base, self._best, self._preferred, self._fast = name, base, best, preferred, fast

    def preferred(self, workload: Workload, target: Target) -> bool:
        return self._preferred

    def quick(self, workload: Workload) -> bool:
        return self._fast

    def space(self, workload: Workload, target: Target) -> Space:
        return Space(self.name, (Ordered("a", (0, 1, 2, 3, 4, 5)),))

    def default(self, workload: Workload, target: Target) -> Config:
        return Config.of(self.name, a=self._best)

    def estimate(self, workload: Workload, config: Config, target: Target) -> float | None:
        if self._base is None:
            return None
        return math.inf if config.int("a") == 5 else self._base + 100.0 * abs(config.int("a") - self._best)


def candidates(*templates: Template, target: Target = GPU, n: int = 64) -> Candidates:
    return candidates_of(make_task(n=n, m=2048, k=2048).workload, target, lambda workload, where: templates)


def names(found: Candidates) -> list[str]:
    return [choice.name for choice in found.choices]


def test_the_default_is_of_the_template_with_the_smallest_estimate() -> None:
    found = candidates(Told("a", 5000), Told("b", 3000), Told("c", 4000), Dense())
    assert names(found) == ["b", "c", "a", "test.dense"]
    assert found.default == Config.of("b", a=2)


def test_templates_without_an_estimate_or_not_preferred_keep_their_places() -> None:
    assert names(candidates(Told("a", None), Told("b", 3000), Told("c", 2000), Dense()))[:3] == ["a", "c", "b"]
    assert names(candidates(Told("a", 5000), Told("b", 10, preferred=False), Dense()))[:2] == ["a", "b"]


def test_a_small_layer_becomes_sparse_by_the_estimate_of_a_template_alone() -> None:
    small = make_task(m=64, k=32, n=12544).workload
    for clocks, default in ((4500, "a"), (9000, "test.dense")):
        found = candidates_of(small, GPU, lambda workload, where, c=clocks: [Told("a", c), Dense()])
        assert found.default.template == default


def test_likely_configs_are_the_default_and_those_with_the_smallest_estimates() -> None:
    (choice,) = candidates(Told("a", 5000, best=1)).choices
    assert [config["a"] for config in choice.likely(3)] == [1, 0, 3]  # 0 and 2 mean the same: equal estimates
    assert [config["a"] for config in choice.likely(9)] == [1, 0, 3, 4]  # 5 cannot run
    assert candidates(Told("a", None)).choices[0].likely(3) == [Config.of("a", a=2)]


def test_a_broad_start_has_all_defaults_before_other_likely_configs() -> None:
    found = candidates(Told("a", 5000), Told("b", 3000), Told("slow", 1000, preferred=False, fast=False), Dense())
    broad = found.broad(3)
    assert [c.template for c in broad] == ["b", "test.dense", "a", "b", "a", "b", "a"]
    assert len(set(broad)) == len(broad)
    assert [c.template for c in found.later()] == ["a", "slow"]


def test_a_broad_start_of_a_dense_task_has_likely_dense_configs() -> None:
    class TellingDense(Dense):
        def estimate(self, workload: Workload, config: Config, target: Target) -> float:
            return config.int("mr") * 10 + config.int("nr")

    found = candidates(TellingDense())
    assert [dict(c.knobs) for c in found.broad(3)] == [{"mr": 4, "nr": 2}, {"mr": 2, "nr": 1}, {"mr": 2, "nr": 2}]


def test_broad_rounds_are_whole_batches_and_keep_all_builders_busy() -> None:
    assert broad_round_size(0, 10, 6, 1) == 10
    assert broad_round_size(0, 3, 12, 8) == 8
    assert [broad_round_size(1, 0, 12, jobs) for jobs in (1, 8, 16)] == [12, 12, 16]


class Rounds(ReplayMeasurer):
    """Notes the size of each round and how long it takes: 0.5 s for every `jobs` builds, 0.05 s a run."""

    def __init__(self, jobs: int = 1) -> None:
        super().__init__(lambda task, config: Measured(config=config, status="ok", times_us=(self.us(task, config),)))
        self.jobs, self.sizes, self.now = jobs, [], 0.0

    def us(self, task: Task, config: Config) -> float:
        if config.template == "test.sparse":
            return measured(task, config).best_us
        return 30.0 + config.int("a") if config.template == "a" else 40.0

    def measure(self, task, configs, on_result=None):
        self.sizes.append(len(configs))
        for at, config in enumerate(configs):
            self.now += 0.05 + (0.5 if at % self.jobs == 0 else 0.0)
            super().measure(task, [config], on_result)
        return [self._cost(task, config) for config in configs]

    def retime(self, task, configs, rounds):
        self.now += 0.05 * len(configs)
        return super().retime(task, configs, rounds)


def tune(measurer: Rounds, tasks: list[Task], target: Target = GPU, **options: object) -> list[object]:
    told = [Told("a", 5000), Sparse(), Dense()]
    return tune_tasks(
        tasks, target, TuneOptions(**options), FakeIndex(), lambda records: None, measurer, lambda event: None, 7,
        templates=lambda workload, where: [t for t in told if t.matches(workload, where)], clock=lambda: measurer.now,
    )  # fmt: skip


def test_a_search_on_a_gpu_starts_broad_and_goes_on_in_whole_batches() -> None:
    measurer = Rounds()
    tune(measurer, [make_task()], effort="default", trials=29)
    assert measurer.sizes == [5, 12, 12]
    first = [config for _, config in measurer.asked[:5]]
    assert [c.template for c in first] == ["a", "test.dense", "test.sparse", "a", "a"]


def test_a_search_on_a_cpu_starts_with_two() -> None:
    measurer = Rounds()
    tune(measurer, [make_task()], TARGET, effort="default", trials=4)
    assert measurer.sizes[0] == 2


def test_the_same_seed_gives_the_same_trials_on_a_gpu() -> None:
    asked = []
    for _ in range(2):
        measurer = Rounds(jobs=4)
        tune(measurer, [make_task("a"), make_task("b", k=256, digest="b")], trials=60)
        asked.append(measurer.asked)
    assert asked[0] == asked[1]
    assert len(set(asked[0])) == 60


@pytest.mark.parametrize("seconds", [1.5, 4.0])
def test_broad_rounds_stay_within_the_budget_and_leave_time_for_other_tasks(seconds: float) -> None:
    measurer = Rounds(jobs=8)
    tasks = [make_task(f"fc{i}", k=256 * (i + 1), digest=str(i)) for i in range(3)]
    tune(measurer, tasks, seconds=seconds)
    assert {name for name, _ in measurer.asked} == {task.name for task in tasks}
    assert measurer.now <= seconds + 0.6 * len(tasks)  # each task's first two trials are measured whatever they take
    alone = Rounds(jobs=8)
    tune(alone, tasks[:1], seconds=seconds)
    assert alone.sizes[0] >= 5
    assert alone.now <= seconds + 0.6


def test_a_resumed_search_measures_what_its_broad_start_left() -> None:
    measurer, journal = Rounds(), []
    told = [Told("a", 5000), Dense()]
    for index in (FakeIndex(), FakeIndex(records=journal)):
        tune_tasks(
            [make_task()], GPU, TuneOptions(trials=2), index, journal.extend, measurer, lambda event: None, 0,
            templates=lambda workload, where: told,
        )  # fmt: skip
    assert [dict(c.knobs) for _, c in measurer.asked][2:] == [{"a": 1}, {"a": 0}]


def test_replacing_the_space_of_a_choice_keeps_the_rest() -> None:
    (choice,) = candidates(Told("a", 5000)).choices
    small = dataclasses.replace(choice, space=Space("a", (Ordered("a", (2, 3)),)))
    assert [config["a"] for config in small.likely(3)] == [2, 3]
    assert msgspec.structs.asdict(small.default)["template"] == "a"
