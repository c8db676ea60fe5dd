"""Tuning without hardware: reuse, groups, limits, the final round, and what is kept when it ends early."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from search_cases import TARGET, FakeDecision, FakeIndex, cost_us, make_task, measured, templates

from sparsetvm.core.config import Config
from sparsetvm.core.record import Record
from sparsetvm.core.results import Event
from sparsetvm.core.task import Task
from sparsetvm.errors import Interrupted, NoCandidateError
from sparsetvm.log.line import encode_line
from sparsetvm.search.budget import TuneOptions
from sparsetvm.search.outcome import TaskOutcome, TuningInterrupted
from sparsetvm.search.replay import ReplayMeasurer, cost_from_records
from sparsetvm.search.trial import Measured
from sparsetvm.search.tuner import tune_tasks

DEFAULT = Config.of("test.sparse", rows=12, k_block=96, groups=4, order="k")
QUICK = TuneOptions(effort="quick", run="test")


class Bench:
    """One tuning run with everything it touched."""

    def __init__(self, cost: Callable[[Task, Config], Measured] = measured, index: FakeIndex | None = None) -> None:
        self.measurer = ReplayMeasurer(cost)
        self.index = index or FakeIndex()
        self.journal: list[Record] = []
        self.events: list[Event] = []

    def tune(self, tasks: list[Task], options: TuneOptions = QUICK, **more: object) -> list[TaskOutcome]:
        return tune_tasks(
            tasks, TARGET, options, self.index, self.journal.extend, self.measurer, self.events.append, 0,
            templates=templates, **more,
        )  # fmt: skip

    def stages(self, stage: str) -> list[Record]:
        return [record for record in self.journal if record.stage == stage]


def good_config() -> Config:
    return Config.of("test.sparse", rows=28, k_block=256, groups=8, order="k")


def record_of(task: Task, config: Config, stage: str = "final") -> Record:
    bench = Bench()
    bench.tune([make_task()], TuneOptions(effort="quick", trials=2))
    template = bench.journal[0]
    space = next(t.space(task.workload, TARGET) for t in templates(task.workload, TARGET) if t.name == config.template)
    import msgspec

    return msgspec.structs.replace(
        template, workload=task.workload, config=config, stage=stage, times_us=measured(task, config).times_us,
        status="ok", message="", space=space.fingerprint,
    )  # fmt: skip


def test_tune_beats_default_and_dense_and_journals_every_trial() -> None:
    bench, task = Bench(), make_task()
    (outcome,) = bench.tune([task], TuneOptions(effort="default"))
    assert outcome.source == "tuned"
    assert outcome.best_us < 0.8 * cost_us(task, DEFAULT)
    assert outcome.dense_us is not None
    assert outcome.best_us < outcome.dense_us
    assert outcome.trials == len(bench.measurer.asked) == len(bench.stages("search")) <= 48
    assert sum(outcome.statuses.values()) == outcome.trials
    assert outcome.rank_correlation is not None
    assert 2 <= len(bench.stages("final")) <= 4
    assert any(record.config.template == "test.dense" for record in bench.stages("final"))
    assert len(set(bench.measurer.asked)) == len(bench.measurer.asked)
    for record in bench.journal:
        encode_line(record)  # the log takes it


def test_tune_starts_with_the_defaults_of_all_templates() -> None:
    bench = Bench()
    bench.tune([make_task()])
    assert [config.template for _, config in bench.measurer.asked[:2]] == ["test.sparse", "test.dense"]
    assert bench.measurer.asked[0][1] == DEFAULT


def test_tune_stays_dense_when_dense_is_faster() -> None:
    task = make_task(density=0.99)
    (outcome,) = Bench().tune([task])
    assert outcome.source == "dense"
    assert outcome.config.template == "test.dense"
    assert outcome.best_us == outcome.dense_us


def test_tune_searches_a_dense_only_task_with_few_trials() -> None:
    bench = Bench()
    (outcome,) = bench.tune([make_task(kind="dense", density=1.0)])
    assert outcome.source == "dense"
    assert 0 < outcome.trials <= 4


def test_tune_runs_no_trial_for_an_exact_record() -> None:
    task = make_task()
    record = record_of(task, good_config())
    index = FakeIndex(decisions={task.workload.id: FakeDecision("exact", record, "log", ["taken"])})
    bench = Bench(index=index)
    (outcome,) = bench.tune([task])
    assert (outcome.source, outcome.config, outcome.trials, outcome.checks) == ("exact", good_config(), 0, 0)
    assert not bench.measurer.asked
    assert not bench.journal
    index.decisions[task.workload.id].source = "shipped"
    assert bench.tune([task])[0].source == "shipped"
    (fresh,) = bench.tune([task], TuneOptions(effort="quick", reuse=False))
    assert fresh.trials > 0


def test_tune_measures_a_compatible_record_once() -> None:
    task = make_task()
    record = record_of(make_task(digest="other"), good_config())
    index = FakeIndex(decisions={task.workload.id: FakeDecision("compatible", record, "log", ["taken"])})
    bench = Bench(index=index)
    (outcome,) = bench.tune([task])
    assert (outcome.source, outcome.config, outcome.trials, outcome.checks) == ("compatible", good_config(), 0, 1)
    assert [record.stage for record in bench.journal] == ["check"]


def test_tune_searches_when_a_compatible_config_no_longer_works() -> None:
    task = make_task()
    broken = Config.of("test.sparse", rows=30, k_block=256, groups=8, order="k")
    record = record_of(task, good_config())
    import msgspec

    record = msgspec.structs.replace(record, config=broken)
    index = FakeIndex(decisions={task.workload.id: FakeDecision("compatible", record, "log")})
    (outcome,) = Bench(index=index).tune([task])
    assert outcome.source == "tuned"
    assert outcome.config != broken
    assert outcome.trials > 0


def test_tune_goes_on_from_an_interrupted_run() -> None:
    task = make_task()
    first = Bench()
    first.tune([task], TuneOptions(effort="quick", trials=7))
    searched = [record for record in first.journal if record.stage == "search"]
    best = min((r for r in searched if r.status == "ok"), key=lambda r: r.best_us)
    index = FakeIndex(records=searched, decisions={task.workload.id: FakeDecision("exact", best, "log")})
    second = Bench(index=index)
    (outcome,) = second.tune([task])
    assert not {c for _, c in first.measurer.asked} & {c for _, c in second.measurer.asked}
    assert 0 < outcome.trials <= 12 - 7
    assert outcome.best_us <= best.best_us
    assert second.stages("final")


def test_tune_never_retries_configs_that_failed_before() -> None:
    task = make_task()
    failing = DEFAULT  # the default
    import msgspec

    record = msgspec.structs.replace(record_of(task, failing, "search"), status="crash", times_us=())
    bench = Bench(index=FakeIndex(records=[record]))
    bench.tune([task])
    assert failing not in {config for _, config in bench.measurer.asked}


def test_tune_measures_seeds_in_the_first_round() -> None:
    bench = Bench(index=FakeIndex(seeded=[good_config(), Config.of("test.unknown", a=1)]))
    bench.tune([make_task()])
    assert good_config() in [config for _, config in bench.measurer.asked[:3]]


def test_tune_searches_tasks_with_alike_patterns_once() -> None:
    alike = [make_task(f"fc{i}", digest=f"d{i}", density=0.1 + 0.002 * i) for i in range(4)]
    other = make_task("sparser", digest="s", density=0.03)
    bench = Bench()
    outcomes = bench.tune([*alike, other])
    assert [outcome.source for outcome in outcomes] == ["tuned", "compatible", "compatible", "compatible", "tuned"]
    assert [outcome.trials > 0 for outcome in outcomes] == [True, False, False, False, True]
    assert {o.config for o in outcomes[:4]} == {outcomes[0].config}
    checked = [r for r in bench.journal if r.stage == "check" and r.workload == alike[2].workload]
    assert {r.config for r in checked} == {outcomes[0].config, DEFAULT}
    assert all(o.dense_us is not None and o.best_us < o.dense_us for o in outcomes)


@pytest.mark.parametrize("trials", [1, 2, 3])
def test_tune_honours_few_trials_and_then_prefers_default_and_dense(trials: int) -> None:
    bench = Bench(index=FakeIndex(seeded=[good_config()]))
    (outcome,) = bench.tune([make_task()], TuneOptions(trials=trials))
    asked = [config for _, config in bench.measurer.asked]
    assert asked == [DEFAULT, Config.of("test.dense", mr=4, nr=2), good_config()][:trials]
    assert outcome.best_us is not None


def test_tune_honours_the_total_number_of_trials() -> None:
    bench = Bench()
    tasks = [make_task(f"fc{i}", k=256 * (i + 1), digest=str(i)) for i in range(3)]
    outcomes = bench.tune(tasks, TuneOptions(trials=20))
    assert sum(outcome.trials for outcome in outcomes) == len(bench.measurer.asked) == 20


def test_tune_takes_defaults_when_there_is_no_time() -> None:
    bench = Bench()
    outcomes = bench.tune([make_task("a"), make_task("b", digest="b"), make_task("c", k=64)], TuneOptions(seconds=0.0))
    assert not bench.measurer.asked
    assert [outcome.source for outcome in outcomes] == ["default"] * 3
    assert outcomes[0].config == DEFAULT
    assert outcomes[0].best_us is None


def test_tune_stops_searching_in_time_for_the_final_round() -> None:
    now = [0.0]

    def slow(task: Task, config: Config) -> Measured:
        now[0] += 1.0
        return measured(task, config)

    bench = Bench(slow)
    outcomes = bench.tune(
        [make_task("a"), make_task("b", k=1024)], TuneOptions(effort="quick", seconds=40.0), clock=lambda: now[0]
    )
    assert all(outcome.source == "tuned" for outcome in outcomes)
    assert bench.stages("final")
    assert now[0] <= 40.0


def test_tune_gives_every_task_a_first_round_before_any_gets_a_second() -> None:
    now = [0.0]

    def slow(task: Task, config: Config) -> Measured:
        now[0] += 1.0
        return measured(task, config)

    bench = Bench(slow)
    tasks = [make_task(f"fc{i}", k=256 * (i + 1), digest=str(i)) for i in range(4)]
    outcomes = bench.tune(tasks, TuneOptions(seconds=12.0), clock=lambda: now[0])
    assert all(outcome.trials >= 2 for outcome in outcomes)
    assert now[0] <= 13.0


def test_tune_leaves_few_trials_for_every_task_when_each_has_seeds() -> None:
    seeds = [Config.of("test.sparse", rows=rows, k_block=256, groups=8, order="k") for rows in (20, 24, 28)]
    bench = Bench(index=FakeIndex(seeded=seeds))
    tasks = [make_task(f"fc{i}", k=256 * (i + 1), digest=str(i)) for i in range(4)]
    outcomes = bench.tune(tasks, TuneOptions(trials=9))
    assert [outcome.trials >= 2 for outcome in outcomes] == [True] * 4
    assert sum(outcome.trials for outcome in outcomes) == 9


def test_tune_keeps_everything_on_keyboard_interrupt() -> None:
    asked = []

    def interrupted(task: Task, config: Config) -> Measured:
        asked.append(config)
        if len(asked) == 9:
            raise KeyboardInterrupt
        return measured(task, config)

    bench = Bench(interrupted)
    with pytest.raises(TuningInterrupted) as caught:
        bench.tune([make_task()])
    assert isinstance(caught.value, Interrupted)
    assert caught.value.exit_code == 130
    assert bench.measurer.closed
    assert len(bench.journal) == 8
    (outcome,) = caught.value.outcomes
    assert outcome.best_us == min(r.best_us for r in bench.journal)


def test_tune_names_the_layer_when_nothing_works() -> None:
    def broken(task: Task, config: Config) -> Measured:
        return Measured(config=config, status="compile_error", message="no assembler\x1b[31m")

    bench = Bench(broken)
    with pytest.raises(NoCandidateError, match="no assembler") as caught:
        bench.tune([make_task("layer4.conv")])
    assert caught.value.layer == "layer4.conv"
    assert len(bench.journal) <= 12
    assert all(record.message.isprintable() for record in bench.journal)


def test_tune_names_the_layer_when_no_template_matches() -> None:
    with pytest.raises(NoCandidateError, match="no schedule template") as caught:
        tune_tasks(
            [make_task("odd")], TARGET, QUICK, FakeIndex(), print, ReplayMeasurer(measured), print,
            templates=lambda workload, target: [],
        )  # fmt: skip
    assert caught.value.layer == "odd"


def test_tune_falls_back_when_the_final_round_fails() -> None:
    bench = Bench()
    bench.measurer.retime = lambda task, configs, rounds: (
        [Measured(config=c, status="crash") for c in configs[:1]] + [measured(task, c) for c in configs[1:]]
    )
    (outcome,) = bench.tune([make_task()])
    crashed = [record.config for record in bench.stages("final") if record.status == "crash"]
    assert outcome.config not in crashed
    assert outcome.best_us is not None


def test_tune_reports_progress_of_each_task() -> None:
    bench = Bench()
    bench.tune([make_task("fc1")])
    kinds = [event.kind for event in bench.events]
    assert kinds[0] == "task_start"
    assert kinds[-1] == "task_end"
    trials = [event for event in bench.events if event.kind == "trial"]
    assert len(trials) == len(bench.stages("search"))
    assert {"status", "trial", "time_us", "best_us"} <= set(trials[0].data)


def test_replay_answers_from_records_and_calls_the_rest_invalid() -> None:
    task = make_task()
    record = record_of(task, good_config())
    replay = ReplayMeasurer(cost_from_records([record]))
    known, unknown = replay.measure(task, [good_config(), good_config().replace(rows=4)])
    assert known.times_us == record.times_us
    assert unknown.status == "invalid"
