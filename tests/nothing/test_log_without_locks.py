"""On a file system without locks each writer has a file of its own, and readers take them all."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
from pathlib import Path

import pytest
from log_samples import CONFIG, DEVICE, TOOLCHAIN, WORKLOAD, record

from sparsetvm.errors import LogError
from sparsetvm.log import journal
from sparsetvm.log.compact import compact
from sparsetvm.log.location import expand
from sparsetvm.log.lookup import RecordIndex
from sparsetvm.log.maintenance import check, merge


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return journal.journal_path(tmp_path / "logs", DEVICE)


@pytest.fixture(params=[errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def _no_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_locks(monkeypatch, request.param)


def refuse_locks(monkeypatch: pytest.MonkeyPatch, code: int = errno.ENOLCK) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(code, "no locks here")

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.usefixtures("_no_locks")
def test_writer_without_locks_uses_its_own_file(log: Path) -> None:
    written = journal.append(log, record(1.0))
    assert written == journal.append(log, record(2.0)) == journal.writer_path(log)
    assert not log.exists()
    assert len(journal.read_records(written).records) == 2


def test_other_errors_of_a_lock_are_no_reason_to_write_elsewhere(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_locks(monkeypatch, errno.EIO)
    with pytest.raises(LogError, match="cannot lock"):
        journal.append(log, record())
    assert not list(log.parent.glob("*.jsonl"))


def _write(path: Path, writer: int) -> None:
    for number in range(10):
        journal.append(path, record(1.0 + number, config=CONFIG.replace(rows=writer)))


def test_no_two_processes_share_a_file(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_locks(monkeypatch)
    journal.append(log, record(99.0))  # forks must not inherit the name
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(log, writer)) for writer in range(3)]
    for process in writers:
        process.start()
    for process in writers:
        process.join(60)
    files = sorted(log.parent.glob("*.jsonl"))
    assert sorted(len(journal.read_records(file).records) for file in files) == [1, 10, 10, 10]


def anything(*_: object) -> bool:
    return True


def test_readers_take_the_files_of_all_writers(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal.append(log, record(50.0))
    with monkeypatch.context() as patch:
        refuse_locks(patch)
        own = journal.append(log, record(40.0))
    by_folder, by_name = RecordIndex.open(log.parent, shipped=False), RecordIndex.open(None, [log], shipped=False)
    for index in (by_folder, by_name):
        assert len(index) == 2
        assert index.best(WORKLOAD, DEVICE, anything, toolchain=TOOLCHAIN).record == record(40.0)
    assert expand([log]) == [log, own]
    assert [report.records for report in check(log)] == [1, 1]
    assert merge([log], log.parent / "all.jsonl").records == 2
    log.unlink()
    assert expand([log]) == [own]


def test_compact_folds_the_files_of_writers_in(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal.append(log, record(50.0))
    with monkeypatch.context() as patch:
        refuse_locks(patch)
        journal.append(log, record(40.0))
        with pytest.raises(LogError, match="no locks"):
            compact(log)
    (report,) = compact(log.parent)
    assert (report.path, report.before, report.after) == (log, 2, 1)
    assert sorted(log.parent.glob("*.jsonl")) == [log]
    assert journal.read_records(log).records == [record(40.0)]
    assert len(list(log.parent.glob("*.bak"))) == 2


def test_writer_whose_file_is_taken_away_while_it_writes_writes_again(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_locks(monkeypatch)
    own = journal.append(log, record(1.0))
    sync, moved = journal.os.fsync, own.with_name("taken.bak")

    def take_away(descriptor: int) -> None:
        sync(descriptor)
        if not moved.exists():
            own.rename(moved)

    monkeypatch.setattr(journal.os, "fsync", take_away)
    journal.append(log, record(2.0))
    assert journal.read_records(own).records == [record(2.0)]
