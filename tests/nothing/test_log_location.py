from __future__ import annotations

from pathlib import Path

import pytest
from conftest import SHIPPED
from log_samples import record

from sparsetvm.errors import LogError
from sparsetvm.log import journal, location


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for name in ("SPARSETVM_LOG_DIR", "SPARSETVM_RECORDS"):
        monkeypatch.delenv(name, raising=False)


def make_log(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    journal.append(path, record())
    return path


def test_log_dir_is_the_state_folder_when_nothing_else_is_there(tmp_path: Path) -> None:
    assert location.log_dir() == tmp_path / "state" / "sparsetvm" / "tuning_logs"


def test_log_dir_is_the_projects_folder_when_there_is_one() -> None:
    Path("tuning_logs").mkdir()
    assert location.log_dir() == Path("tuning_logs")


def test_log_dir_setting_beats_the_project_and_the_option_beats_both(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("tuning_logs").mkdir()
    monkeypatch.setenv("SPARSETVM_LOG_DIR", "set")
    assert location.log_dir() == Path("set")
    assert location.log_dir("given") == Path("given")


def test_log_files_come_in_look_up_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = make_log(tmp_path / "given.jsonl")
    team = make_log(tmp_path / "team" / "cpu-x.jsonl")
    ours = make_log(tmp_path / "ours" / "cpu-x.jsonl")
    set_ = make_log(tmp_path / "set.jsonl")
    shipped = make_log(tmp_path / "shipped" / "cpu-x.jsonl")
    monkeypatch.setenv("SPARSETVM_RECORDS", str(set_))
    monkeypatch.setattr(location, "shipped_logs", lambda: (shipped,))
    found = location.log_files(ours.parent, [given, team.parent, given])
    assert [(f.path, f.source) for f in found] == [
        (given, "records"),
        (team, "records"),
        (ours, "log"),
        (set_, "records"),
        (shipped, "shipped"),
    ]
    assert location.log_files(ours.parent, shipped=False)[-1].path == set_


def test_log_files_lists_only_journals(tmp_path: Path) -> None:
    log = make_log(tmp_path / "logs" / "cpu-x.jsonl")
    (log.parent / "notes.txt").write_text("x")
    (log.parent / "cpu-x.jsonl.bak").write_text("x")
    assert [f.path for f in location.log_files(log.parent, shipped=False)] == [log]


def test_log_files_of_a_folder_that_is_not_there_yet_are_none(tmp_path: Path) -> None:
    assert location.log_files(tmp_path / "later", shipped=False) == []
    assert location.log_files(None, shipped=False) == []


def test_missing_records_are_an_error_that_names_where_they_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LogError, match=r"--records: no tuning log at gone\.jsonl"):
        location.log_files(None, ["gone.jsonl"])
    monkeypatch.setenv("SPARSETVM_RECORDS", "gone.jsonl")
    with pytest.raises(LogError, match=r"SPARSETVM_RECORDS: no tuning log at gone\.jsonl"):
        location.log_files(None)


def test_shipped_logs_can_be_read() -> None:
    assert SHIPPED()
    for path in SHIPPED():
        assert journal.read_records(path).bad == []
