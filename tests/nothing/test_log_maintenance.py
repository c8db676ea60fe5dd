from __future__ import annotations

from datetime import datetime, timezone
from itertools import permutations
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from log_samples import CONFIG, OTHER_CONFIG, OTHER_DEVICE, WORKLOAD, record, records, workload

from sparsetvm.core.record import Record
from sparsetvm.errors import LogError
from sparsetvm.log import journal
from sparsetvm.log.line import encode_line
from sparsetvm.log.maintenance import age, check, list_records, merge


def test_check_counts_records_and_names_bad_lines(tmp_path: Path) -> None:
    path = tmp_path / "cpu-x.jsonl"
    path.write_bytes(encode_line(record()) + b"junk\n" + encode_line(record(None)) + encode_line(record()))
    before = path.read_bytes()
    (report,) = check(path)
    assert (report.records, report.duplicates, report.statuses) == (3, 1, {"ok": 2, "crash": 1})
    assert [number for number, _ in report.bad] == [2]
    assert report.backup is None
    assert path.read_bytes() == before


def test_check_of_a_folder_looks_at_every_log(tmp_path: Path) -> None:
    journal.append(tmp_path / "a.jsonl", record())
    journal.append(tmp_path / "b.jsonl", record(), record(1.0))
    assert [report.records for report in check(tmp_path)] == [1, 2]


def test_repair_keeps_good_lines_as_they_are_and_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "cpu-x.jsonl"
    good = [encode_line(record(1.0)), encode_line(record(2.0))]
    damaged = good[0] + b"junk\n" + good[1] + good[0] + b'{"torn'
    path.write_bytes(damaged)
    (report,) = check(path, repair=True)
    assert path.read_bytes() == b"".join(good)
    assert report.backup == tmp_path / "cpu-x.jsonl.bak"
    assert report.backup.read_bytes() == damaged
    path.write_bytes(b"junk again\n" + good[0])
    assert check(path, repair=True)[0].backup == tmp_path / "cpu-x.jsonl.bak2"
    assert (tmp_path / "cpu-x.jsonl.bak").read_bytes() == damaged


def test_repair_leaves_a_sound_log_alone(tmp_path: Path) -> None:
    path = tmp_path / "cpu-x.jsonl"
    journal.append(path, record(1.0))
    assert check(path, repair=True)[0].backup is None
    assert not (tmp_path / "cpu-x.jsonl.bak").exists()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(records(), min_size=1, max_size=6), st.data())
def test_merge_is_commutative_and_idempotent(tmp_path: Path, samples: list[Record], data: st.DataObject) -> None:
    for old in tmp_path.glob("*.jsonl"):
        old.unlink()
    parts = [tmp_path / f"part{i}.jsonl" for i in range(3)]
    for part in parts:
        journal.append(part, *data.draw(st.lists(st.sampled_from(samples), max_size=6)))
    merged = set()
    for number, order in enumerate(permutations(parts)):
        out = tmp_path / f"out{number}.jsonl"
        count = merge(order, out).records
        merged.add(out.read_bytes())
        assert merge([*order, out], out).records == count
        assert merge([out], out).records == count
        merged.add(out.read_bytes())
    assert len(merged) == 1
    expected = {encode_line(r) for part in parts for r in journal.read_records(part).records}
    assert set(merged.pop().splitlines(keepends=True)) == expected


def test_merge_keeps_what_the_output_holds(tmp_path: Path) -> None:
    out = tmp_path / "all.jsonl"
    journal.append(out, record(1.0))
    journal.append(tmp_path / "new.jsonl", record(2.0))
    assert merge([tmp_path / "new.jsonl"], out).records == 2


def test_merge_drops_and_counts_bad_lines(tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_bytes(b"junk\n" + encode_line(record()) + b"{")
    report = merge([source], tmp_path / "out.jsonl")
    assert (report.records, report.skipped) == (1, {source: 2})
    assert journal.read_records(tmp_path / "out.jsonl").bad == []


def test_merge_into_an_unwritable_place_is_a_log_error(tmp_path: Path) -> None:
    journal.append(tmp_path / "a.jsonl", record())
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LogError, match="cannot write"):
        merge([tmp_path / "a.jsonl"], tmp_path / "file" / "out.jsonl")


def test_list_has_one_row_per_task_and_device() -> None:
    other = workload(digest="other")
    rows = list_records(
        [
            record(50.0, time="2026-01-01T00:00:00Z"),
            record(None, config=OTHER_CONFIG, time="2026-01-03T00:00:00Z"),
            record(40.0, stage="final", time="2026-01-02T00:00:00Z"),
            record(9.0, device=OTHER_DEVICE),
            record(None, workload=other),
        ]
    )
    first, second, third = rows
    assert (first.workload_id, first.workload, first.count, first.failed) == (WORKLOAD.id, WORKLOAD, 3, 1)
    assert (first.config, first.best_us, first.stage) == (str(CONFIG), 40.0, "final")
    assert first.newest == "2026-01-03T00:00:00Z"
    assert second.device == OTHER_DEVICE.model
    assert (third.config, third.best_us, third.stage) == ("", None, "")


@pytest.mark.parametrize(
    ("time", "words"),
    [
        ("2026-01-10T11:59:50Z", "just now"),
        ("2026-01-10T11:30:00+00:00", "30 min"),
        ("2026-01-10T07:00:00", "5 h"),
        ("2026-01-01T12:00:00Z", "9 d"),
        ("yesterday", ""),
        ("", ""),
    ],
)
def test_age_in_words(time: str, words: str) -> None:
    assert age(time, datetime(2026, 1, 10, 12, tzinfo=timezone.utc)) == words
