from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from log_samples import (
    AVX2_DEVICE,
    CONFIG,
    DEVICE,
    OTHER_CONFIG,
    OTHER_DEVICE,
    TOOLCHAIN,
    WORKLOAD,
    record,
    workload,
)

from sparsetvm.core.config import Config
from sparsetvm.core.record import Record
from sparsetvm.core.workload import Workload
from sparsetvm.errors import LogError
from sparsetvm.log import journal
from sparsetvm.log.lookup import Decision, RecordIndex

DENSE = Config.of("x86.dense", mr=8, nr=2)
SHAPE = msgspec.structs.replace(WORKLOAD, m=1024)
CONV = msgspec.structs.replace(WORKLOAD, op="conv2d")


def index_of(*records: Record, source: str = "log") -> RecordIndex:
    index = RecordIndex()
    for item in records:
        index.add(item, source)  # type: ignore[arg-type]
    return index


def anything(config: Config, version: int, space: str) -> bool:
    return True


def best(index: RecordIndex, asked: Workload = WORKLOAD, valid=anything) -> Decision:
    return index.best(asked, DEVICE, valid, toolchain=TOOLCHAIN)


def toolchain(**changes: str):
    return msgspec.structs.replace(TOOLCHAIN, **changes)


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, "exact"),
        ({"toolchain": toolchain(python="3.13.1", numpy="2.3.0")}, "exact"),
        ({"device": msgspec.structs.replace(DEVICE, cores=64, flags_digest="other")}, "exact"),
        ({"workload": workload(digest="other")}, "compatible"),
        ({"workload": workload(digest="other", density=0.109)}, "compatible"),
        ({"workload": workload(digest="other", density=0.111)}, "near"),
        ({"workload": workload(digest="other", density=0.089)}, "near"),
        ({"workload": workload(digest="other", row_imbalance=2.8)}, "compatible"),
        ({"workload": workload(digest="other", row_imbalance=2.9)}, "near"),
        ({"workload": workload(digest="other", empty_rows=3)}, "compatible"),
        ({"workload": workload(kind="block", block=(4, 1))}, "near"),
        ({"toolchain": toolchain(sparsetvm="0.1.7")}, "compatible"),
        ({"toolchain": toolchain(tvm="0.27.0.post2")}, "compatible"),
        ({"toolchain": toolchain(sparsetvm="0.2.0")}, "near"),
        ({"toolchain": toolchain(tvm="0.28.0")}, "near"),
        ({"toolchain": toolchain(tvm="0.28.0"), "workload": workload(digest="other")}, "near"),
        ({"workload": SHAPE}, "near"),
        ({"workload": msgspec.structs.replace(WORKLOAD, threads=8)}, "near"),
        ({"device": OTHER_DEVICE}, "near"),
        ({"device": AVX2_DEVICE}, "none"),
        ({"workload": CONV}, "none"),
        ({"workload": msgspec.structs.replace(WORKLOAD, dtype="float16")}, "none"),
    ],
)
def test_reuse_rules(changes: dict, kind: str) -> None:
    decision = best(index_of(record(**changes)))
    assert decision.kind == kind
    assert (decision.record is not None) == (kind in ("exact", "compatible"))
    assert (decision.source is not None) == (kind in ("exact", "compatible"))
    assert decision.why


def test_best_is_the_fastest() -> None:
    decision = best(index_of(record(50.0), record(40.0, config=OTHER_CONFIG), record(45.0, config=DENSE)))
    assert decision.record is not None
    assert decision.record.config == OTHER_CONFIG
    assert "taken" in decision.why[0]
    assert len([line for line in decision.why if "not taken: slower" in line]) == 2


def test_best_may_be_dense() -> None:
    decision = best(index_of(record(50.0, stage="final"), record(45.0, config=DENSE, stage="final")))
    assert decision.record is not None
    assert decision.record.config == DENSE


def test_retimed_results_count_before_those_of_the_search() -> None:
    lucky = record(30.0), record(50.0, stage="final")
    decision = best(index_of(*lucky, record(45.0, config=OTHER_CONFIG, stage="final")))
    assert decision.record is not None
    assert decision.record.config == OTHER_CONFIG


def test_search_result_must_be_clearly_faster_than_a_retimed_one() -> None:
    final = record(50.0, stage="final")
    for time, wins in ((47.0, False), (44.0, True)):
        decision = best(index_of(final, record(time, config=OTHER_CONFIG)))
        assert decision.record is not None
        assert (decision.record.config == OTHER_CONFIG) == wins


def test_search_result_that_a_final_round_passed_over_is_not_taken() -> None:
    times = {"time": "2026-01-01T00:00:05Z", "run": "one"}
    final = record(50.0, stage="final", **times)
    for fluke, wins in (
        (record(20.0, config=OTHER_CONFIG, **times), False),
        (record(20.0, config=OTHER_CONFIG, time="2026-01-01T00:00:04Z", run="earlier"), False),
        (record(20.0, config=OTHER_CONFIG, time="2026-01-01T00:00:06Z", run="later"), True),
    ):
        decision = best(index_of(final, fluke))
        assert decision.record is not None
        assert (decision.record.config == OTHER_CONFIG) == wins


def test_later_check_replaces_an_earlier_one() -> None:
    old = record(10.0, stage="check", time="2025-01-01T00:00:00Z")
    new = record(90.0, stage="check", time="2026-06-01T00:00:00Z")
    for order in ((old, new), (new, old)):
        decision = best(index_of(*order))
        assert decision.record == new


def test_failed_configs_are_never_taken() -> None:
    decision = best(index_of(record(None, message="signal 11")))
    assert decision.kind == "none"
    assert "not taken: crash (signal 11)" in decision.why[0]


def test_failure_after_a_success_disqualifies_a_success_after_a_failure_heals() -> None:
    good = record(10.0, time="2026-01-01T00:00:00Z")
    assert best(index_of(good, record(None, time="2026-01-02T00:00:00Z"))).kind == "none"
    assert best(index_of(good, record(None, time="2025-12-31T00:00:00Z"))).kind == "exact"


def test_config_that_failed_on_this_task_is_not_taken_from_a_compatible_one() -> None:
    index = index_of(record(None, status="wrong_answer"), record(10.0, workload=workload(digest="other")))
    decision = best(index)
    assert decision.record is None
    assert any("on this very task: wrong_answer" in line for line in decision.why)


def test_exact_goes_before_a_faster_compatible_record() -> None:
    index = index_of(record(1.0, workload=workload(digest="other"), config=OTHER_CONFIG), record(50.0))
    decision = best(index)
    assert (decision.kind, decision.record) == ("exact", record(50.0))


def test_why_names_the_choice_first_whatever_was_considered_before_it() -> None:
    broken = record(None)  # of this very task
    slow = record(60.0, workload=workload(digest="far", density=0.108), config=OTHER_CONFIG, stage="final", run="a")
    fluke = record(20.0, workload=slow.workload, config=DENSE, run="a")
    decision = best(index_of(broken, fluke, slow))
    assert decision.record == slow
    assert f"{OTHER_CONFIG} 60 us (final): taken, to be measured once" in decision.why[0]
    assert any("not taken: crash" in line for line in decision.why[1:])


def test_closest_compatible_workload_goes_first() -> None:
    far = record(10.0, workload=workload(digest="far", density=0.108), config=OTHER_CONFIG)
    near = record(20.0, workload=workload(digest="near", density=0.101))
    decision = best(index_of(far, near))
    assert decision.record == near
    assert "to be measured once" in decision.why[0]


def test_hard_mismatch_is_never_applied_but_explained() -> None:
    decision = best(index_of(record(device=AVX2_DEVICE), record(workload=SHAPE)))
    assert decision.record is None
    assert any("another instruction set (cpu avx2): not used" in line for line in decision.why)
    assert any("matmul 1024x256 n=128" in line and "seeds the search only" in line for line in decision.why)


def test_config_that_the_local_template_does_not_declare_is_not_taken() -> None:
    decision = best(index_of(record(1.0), record(50.0, config=DENSE)), valid=lambda c, v, s: c.template == "x86.dense")
    assert decision.record is not None
    assert decision.record.config == DENSE
    assert any("not a config of the local template" in line for line in decision.why)


def test_record_of_another_template_version_is_not_taken() -> None:
    index = index_of(record(template_version=1))
    assert best(index, valid=lambda c, version, s: version == 2).kind == "none"


def test_slower_config_of_a_new_space_does_not_hide_a_faster_one_of_an_old_space() -> None:
    fast = record(space="old", stage="final", run="a", times_us=(10.0,), time="2026-01-01T00:00:00+00:00")
    dense = record(
        config=DENSE, space="new", stage="final", run="b", times_us=(90.0,), time="2026-01-02T00:00:00+00:00"
    )
    decision = best(index_of(fast, dense), valid=lambda c, v, space: space in ("", "new"))
    assert (decision.kind, decision.record) == ("compatible", fast)
    # The other way round the exact one is simply the better one.
    slow = msgspec.structs.replace(fast, times_us=(99.0,))
    decision = best(index_of(slow, dense), valid=lambda c, v, space: space in ("", "new"))
    assert (decision.kind, decision.record) == ("exact", dense)


def test_record_of_a_changed_space_is_compatible_while_it_is_declared() -> None:
    decision = best(index_of(record(space="old")), valid=lambda c, v, space: space in ("", "new"))
    assert decision.kind == "compatible"
    assert "search space" in decision.why[0]


def test_no_reuse_takes_nothing() -> None:
    index = index_of(record())
    assert index.best(WORKLOAD, DEVICE, anything, reuse=False, toolchain=TOOLCHAIN).kind == "none"


def test_equal_times_go_to_the_earlier_source() -> None:
    index = index_of(record(), source="records")
    index.add(record(), "shipped")
    assert best(index).source == "records"


def test_why_is_short_when_there_are_many_configs() -> None:
    many = [record(50.0 + i, config=CONFIG.replace(rows=i)) for i in range(300)]
    decision = best(index_of(*many))
    assert len(decision.why) < 30
    assert "280 more configs" in decision.why[-1]


def test_failed_configs_are_those_of_this_task() -> None:
    index = index_of(
        record(None),
        record(10.0, config=OTHER_CONFIG),
        record(None, config=DENSE, workload=SHAPE),
        record(None, config=CONFIG.replace(rows=1), template_version=9),
    )
    everything = index.failed_configs(WORKLOAD, DEVICE, toolchain=TOOLCHAIN)
    assert everything == {CONFIG, CONFIG.replace(rows=1)}
    assert index.failed_configs(WORKLOAD, DEVICE, lambda c, v, s: v == 1, toolchain=TOOLCHAIN) == {CONFIG}


def test_measured_are_all_records_of_this_task() -> None:
    index = index_of(record(None), record(10.0), record(5.0, workload=SHAPE))
    assert index.measured(WORKLOAD, DEVICE, TOOLCHAIN) == [record(None), record(10.0)]


def test_seeds_take_the_best_of_each_neighbour_in_turn() -> None:
    close, far = workload(digest="x", density=0.12), msgspec.structs.replace(WORKLOAD, m=4096, k=4096)
    a, b, c, d = (CONFIG.replace(rows=r) for r in (1, 2, 3, 4))
    index = index_of(
        record(9.0, workload=far, config=d),
        record(5.0, workload=close, config=b),
        record(3.0, workload=close, config=a),
        record(7.0, workload=far, config=c),
        record(None, workload=far, config=DENSE),
        record(1.0, workload=CONV, config=OTHER_CONFIG),
        record(1.0, device=AVX2_DEVICE, config=OTHER_CONFIG),
    )
    assert index.seeds(WORKLOAD, 9, DEVICE) == [a, c, b, d]
    assert index.seeds(WORKLOAD, 2, DEVICE) == [a, c]
    assert index.seeds(WORKLOAD, 9, DEVICE, valid=lambda config, v, s: config != c) == [a, b, d]


def test_training_gives_similar_records_first_and_failures_too() -> None:
    index = index_of(record(workload=SHAPE), record(device=OTHER_DEVICE), record(None), record(device=AVX2_DEVICE))
    found = index.training(WORKLOAD, DEVICE)
    assert found[0] == record(None)
    assert len(found) == 3
    assert index.training(WORKLOAD, DEVICE, limit=1) == found[:1]


def test_index_reads_files_when_first_asked(tmp_path: Path) -> None:
    path = tmp_path / "cpu-x.jsonl"
    journal.append(path, record())
    index = RecordIndex.open(tmp_path, shipped=False)
    journal.append(path, record(7.0, config=OTHER_CONFIG))
    with path.open("ab") as file:
        file.write(b"junk\n")
    assert len(index) == 2
    assert index.bad[path][0][0] == 3
    assert best(index).record == record(7.0, config=OTHER_CONFIG)


def test_index_knows_each_record_once(tmp_path: Path) -> None:
    journal.append(tmp_path / "log" / "a.jsonl", record())
    journal.append(tmp_path / "b.jsonl", record(), record(1.0))
    index = RecordIndex.open(tmp_path / "log", [tmp_path / "b.jsonl"], shipped=False)
    assert len(index) == 2
    assert best(index).source == "records"


def test_index_refuses_a_log_of_a_later_version(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"schema": 2}\n')
    with pytest.raises(LogError, match="schema 2"):
        len(RecordIndex.open(tmp_path, shipped=False))


def of_version(wanted: int):
    return lambda config, version, space: version == wanted or config.template != CONFIG.template


def test_what_an_old_template_version_was_faster_than_is_searched_again() -> None:
    round_of_old = {"stage": "final", "run": "a"}
    index = index_of(record(10.0, **round_of_old), record(90.0, config=DENSE, **round_of_old))
    decision = best(index, valid=of_version(2))
    assert decision.kind == "near"
    assert decision.record is None
    assert any("version 1" in line and "10 us" in line for line in decision.why)


def test_a_later_round_settles_what_an_old_template_version_left_open() -> None:
    old = record(10.0, stage="final", run="a"), record(90.0, config=DENSE, stage="final", run="a")
    later = {"stage": "final", "run": "b", "time": "2026-02-02T03:04:05Z"}
    new = record(12.0, template_version=2, **later), record(90.0, config=DENSE, **later)
    decision = best(index_of(*old, *new), valid=of_version(2))
    assert decision.kind == "exact"
    assert decision.record is not None
    assert decision.record.times_us == (12.0,)


def test_old_template_versions_that_lost_change_nothing() -> None:
    index = index_of(record(95.0, stage="final"), record(90.0, config=DENSE, stage="final"))
    assert best(index, valid=of_version(2)).kind == "exact"
