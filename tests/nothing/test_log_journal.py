from __future__ import annotations

import fcntl
import multiprocessing
import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from log_samples import CONFIG, DEVICE, OTHER_DEVICE, record, records

from sparsetvm.core.layout import Planes
from sparsetvm.core.record import Conditions, Record
from sparsetvm.errors import LogError
from sparsetvm.log import journal
from sparsetvm.log.line import MAX_LINE, encode_line

DATA = Path(__file__).parent / "data"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return journal.journal_path(tmp_path / "logs", DEVICE)


def test_journal_has_one_file_per_device_model(tmp_path: Path) -> None:
    path = journal.journal_path(tmp_path, DEVICE)
    assert path.name == "cpu-amd-epyc-9r14-family-25-model-17.jsonl"
    assert journal.journal_path(tmp_path, OTHER_DEVICE) != path
    hostile = msgspec.structs.replace(DEVICE, model="../../etc/" + "x" * 300)
    assert journal.journal_path(tmp_path, hostile).parent == tmp_path
    assert len(journal.journal_path(tmp_path, hostile).name) < 100
    assert journal.journal_path(tmp_path, msgspec.structs.replace(DEVICE, model="")).name == "cpu-unknown.jsonl"


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(records(), max_size=4))
def test_journal_round_trips(tmp_path: Path, samples: list[Record]) -> None:
    path = tmp_path / "cpu.jsonl"
    path.unlink(missing_ok=True)
    journal.append(path, *samples)
    read = journal.read_records(path)
    assert read.records == samples
    assert read.bad == []


def test_append_adds_to_what_is_there(log: Path) -> None:
    journal.append(log, record(1.0))
    before = log.read_bytes()
    journal.append(log, record(2.0), record(3.0))
    assert log.read_bytes().startswith(before)
    assert [r.times_us for r in journal.read_records(log).records] == [(1.0,), (2.0,), (3.0,)]


def test_append_writes_nothing_when_a_record_is_bad(log: Path) -> None:
    with pytest.raises(ValueError, match="not a valid record"):
        journal.append(log, record(1.0), record(float("nan")))
    assert not log.exists()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_torn_tail_costs_one_line(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "cpu.jsonl"
    lines = [encode_line(record(t)) for t in (1.0, 2.0)]
    kept = data.draw(st.integers(1, len(lines[1]) - 2), label="bytes of the second line on the disk")
    path.write_bytes(lines[0] + lines[1][:kept])
    journal.append(path, record(3.0))
    read = journal.read_records(path)
    assert [r.best_us for r in read.records] == [1.0, 3.0]
    assert [number for number, _ in read.bad] == [2]


def test_log_that_ends_anywhere_in_its_last_three_records_loads(log: Path) -> None:
    lines = [encode_line(record(float(t), config=CONFIG.replace(rows=t))) for t in range(1, 4)]
    whole = b"".join(lines)
    log.parent.mkdir()
    log.write_bytes(whole)
    starts = [sum(map(len, lines[:count])) for count in range(len(lines) + 1)]
    for end in range(len(whole), -1, -1):
        os.truncate(log, end)
        read = journal.read_records(log)
        # A record is there from its last brace on; the newline may be missing.
        complete = sum(end >= start - 1 for start in starts[1:])
        assert [r.best_us for r in read.records] == [float(t) for t in range(1, complete + 1)]
        assert len(read.bad) == (end not in starts and end + 1 not in starts)


def test_new_log_is_made_to_last_with_its_name(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(journal, "sync_folder", synced.append)
    journal.append(log, record())
    journal.append(log, record())
    assert synced == [log.parent]


def test_line_that_lacks_only_its_newline_is_kept(log: Path) -> None:
    journal.append(log, record(1.0))
    log.write_bytes(log.read_bytes().rstrip(b"\n"))
    assert len(journal.read_records(log).records) == 1
    journal.append(log, record(2.0))
    assert journal.read_records(log).bad == []


def test_bad_lines_are_skipped_and_numbered(log: Path) -> None:
    good = encode_line(record(1.0))
    wrong_sum = good.replace(b'"m":512', b'"m":513')
    lines = [good, b"\n", b"not json\n", good, wrong_sum, b"\xff\xfe\n", b"null\n", b"{" * (MAX_LINE + 9) + b"\n", good]
    log.parent.mkdir()
    log.write_bytes(b"".join(lines))
    read = journal.read_records(log)
    assert len(read.records) == 3
    assert [number for number, _ in read.bad] == [3, 5, 6, 7, 8]
    reasons = " | ".join(reason for _, reason in read.bad)
    assert "checksum does not match" in reasons
    assert "longer than 1 MB" in reasons


def test_oversized_line_without_an_end_is_one_bad_line(log: Path) -> None:
    log.parent.mkdir()
    log.write_bytes(encode_line(record()) + b"x" * (3 * MAX_LINE + 5))
    read = journal.read_records(log)
    assert (len(read.records), [number for number, _ in read.bad]) == (1, [2])


def test_windows_newlines_are_read(log: Path) -> None:
    log.parent.mkdir()
    log.write_bytes(encode_line(record()).replace(b"\n", b"\r\n") * 2)
    assert len(journal.read_records(log).records) == 2


def test_newer_schema_is_an_error_that_says_what_to_do(log: Path) -> None:
    log.parent.mkdir()
    log.write_bytes(encode_line(record()) + b'{"schema": 7, "all": "new"}\n')
    with pytest.raises(LogError, match=r"line 2 has schema 7, this version reads up to 1\n.*update sparsetvm"):
        journal.read_records(log)


def test_missing_log_is_an_error(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(LogError, match="no tuning log at"):
            journal.read_records(path)


def test_check_writable_makes_the_folder(tmp_path: Path) -> None:
    journal.check_writable(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_unwritable_folder_is_an_error_with_the_next_step(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for attempt in (
        lambda: journal.check_writable(tmp_path / "file"),
        lambda: journal.check_writable(tmp_path / "file" / "logs"),
        lambda: journal.append(tmp_path / "file" / "cpu.jsonl", record()),
    ):
        with pytest.raises(LogError, match=r"next step: .*--log-dir") as caught:
            attempt()
        assert caught.value.exit_code == 7


def test_locked_log_is_an_error_after_a_while(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsetvm.log.lock.LOCK_SECONDS", 0.05)
    log.parent.mkdir()
    with open(f"{log}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(LogError, match="locked by another process"):
            journal.append(log, record())
    journal.append(log, record())


def test_lock_file_that_somebody_deletes_protects_nobody(log: Path) -> None:
    """Who waits for the old file must not take its lock for that of the new one."""
    journal.append(log, record(1.0))
    lock = Path(f"{log}.lock")
    with lock.open() as old:
        fcntl.flock(old, fcntl.LOCK_EX)
        lock.unlink()
        journal.append(log, record(2.0))
    assert len(journal.read_records(log).records) == 2


def _write(path: Path, writer: int, count: int) -> None:
    for number in range(count):
        journal.append(path, record(1.0 + number, seed=writer, message="", config=CONFIG.replace(rows=writer)))


def test_concurrent_writers_lose_nothing(log: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(log, writer, 25)) for writer in range(4)]
    for process in writers:
        process.start()
    for process in writers:
        process.join(60)
    assert [process.exitcode for process in writers] == [0] * 4
    read = journal.read_records(log)
    assert read.bad == []
    for writer in range(4):
        assert [r.best_us for r in read.records if r.seed == writer] == [1.0 + n for n in range(25)]


def test_records_of_schema_1_are_still_read() -> None:
    """The file was written by version 0.1.0 and must be read by every later one; its third line is damaged."""
    read = journal.read_records(DATA / "records-v1.jsonl")
    assert [number for number, _ in read.bad] == [3]
    first, second, third, fourth = read.records
    assert first.workload.describe() == "matmul 512x256 n=128"
    assert (first.config, first.best_us, first.stage) == (CONFIG, 50.0, "final")
    assert (second.status, second.message, second.times_us) == ("crash", "signal 11", ())
    assert third.workload.describe() == "conv2d 3x3/2 64->128 28x28"
    assert third.workload.layout_in == Planes(1, 64, 28, 28, 1, 16, (2, 2))
    assert third.config.int("rows") == 24
    assert fourth.workload.pattern.describe() == "block 4x1"
    assert fourth.device == DEVICE
    assert [(r.remeasured, r.conditions) for r in read.records] == [("", None)] * 4


def test_records_of_schema_1_with_conditions_are_still_read() -> None:
    """Fields that were added without a new schema."""
    read = journal.read_records(DATA / "records-v1-conditions.jsonl")
    assert read.bad == []
    first, second, third = read.records
    assert first.conditions == Conditions("performance", 3712.5, 0.25, 0.011)
    assert (second.remeasured, second.conditions.noise) == ("times vary by 14%", None)
    assert (third.status, third.conditions) == ("crash", None)
