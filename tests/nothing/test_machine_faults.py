"""Full disks, read-only folders, no home, a clock that jumps: nothing is lost and nothing is left behind."""

from __future__ import annotations

import errno
import os
import re
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from log_samples import CONFIG, DEVICE, OTHER_CONFIG, TOOLCHAIN, WORKLOAD, record
from models import mlp

from sparsetvm.analysis.prune import prune_model
from sparsetvm.cli.arrays import write_arrays
from sparsetvm.cli.main import cli
from sparsetvm.core.files import write_whole
from sparsetvm.errors import EnvironmentProblem, LogError, SparseTvmError, UsageError
from sparsetvm.log import journal, location
from sparsetvm.log.compact import compact
from sparsetvm.log.export import export
from sparsetvm.log.journal import append, check_writable, read_records
from sparsetvm.log.lookup import RecordIndex
from sparsetvm.log.maintenance import age, check, keep, merge
from sparsetvm.measure import nvcc

BIG = 1 << 20  # larger than anything that pytest writes meanwhile


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes: the closest to a full disk that needs no rights."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log of a megabyte, most of it blank lines, with two records."""
    path = tmp_path / "logs" / "cpu-a.jsonl"
    append(path, record(), record(60.0, config=OTHER_CONFIG))
    with path.open("ab") as file:
        file.write(b"\n" * BIG)
    return path


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_append_to_a_full_disk_is_a_log_error_and_loses_nothing(log):
    with (
        full_disk(log.stat().st_size + 100),
        pytest.raises(LogError, match=r"cannot append to .*File too large") as caught,
    ):
        append(log, record(70.0))
    assert caught.value.exit_code == 7
    assert [r.best_us for r in read_records(log).records] == [50.0, 60.0]
    append(log, record(80.0))  # there is room again
    result = read_records(log)
    assert [r.best_us for r in result.records] == [50.0, 60.0, 80.0]
    assert len(result.bad) == 1  # the torn line
    assert files(log.parent) == ["cpu-a.jsonl"]


def rewrite_calls() -> dict[str, Callable[[Path], object]]:
    return {
        "compact": compact,
        "repair": lambda log: check(log, repair=True),
        "merge": lambda log: merge([log], log.parent / "out.jsonl"),
        "export": lambda log: export(read_records(log).records, log.parent / "out.csv"),
    }


@pytest.mark.parametrize("name", rewrite_calls())
def test_log_that_cannot_be_rewritten_stays_as_it_is(name, log, monkeypatch):
    with log.open("ab") as file:
        file.write(b"{damaged\n")
    before = log.read_bytes()

    def no_room(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", no_room)  # where a full disk is noticed at the latest
    with pytest.raises(LogError, match="No space left on device"):
        rewrite_calls()[name](log)
    assert log.read_bytes() == before
    assert [name for name in files(log.parent) if ".bak" not in name] == ["cpu-a.jsonl"]


def test_backup_that_cannot_be_copied_whole_is_not_kept(log, monkeypatch):
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, "no links here")))
    assert keep(log).read_bytes() == log.read_bytes()
    with full_disk(BIG // 2), pytest.raises(OSError, match="File too large"):
        keep(log)
    assert files(log.parent) == ["cpu-a.jsonl", "cpu-a.jsonl.bak"]


@pytest.mark.parametrize("exists", [False, True])
def test_file_is_written_whole_or_not_at_all(exists, tmp_path):
    path = tmp_path / "out"
    if exists:
        path.write_bytes(b"old")
        path.chmod(0o600)
    with full_disk(BIG), pytest.raises(OSError, match="File too large"):
        write_whole(path, lambda file: file.write(bytes(2 * BIG)))
    assert files(tmp_path) == (["out"] if exists else [])
    assert not exists or path.read_bytes() == b"old"
    write_whole(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == (0o600 if exists else 0o644)


def test_file_behind_a_link_is_written_and_the_link_stays(tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    write_whole(tmp_path / "link", lambda file: file.write(b"new"))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def test_device_is_written_as_it_is():
    write_whole("/dev/null", lambda file: file.write(b"new"))
    with pytest.raises(OSError, match="No space left"):
        write_whole("/dev/full", lambda file: file.write(b"new"))


def test_arrays_that_do_not_fit_leave_the_old_file(tmp_path):
    path = str(tmp_path / "out.npz")
    write_arrays(path, {"y": np.zeros(3)})
    with full_disk(BIG), pytest.raises(UsageError, match="File too large"):
        write_arrays(path, {"y": np.random.default_rng(0).random(BIG)})
    assert np.load(path)["y"].shape == (3,)
    assert files(tmp_path) == ["out.npz"]


def test_pruned_model_that_does_not_fit_is_an_environment_problem(tmp_path):
    model = mlp((600, 600, 2)).save(tmp_path / "m.onnx")
    with full_disk(BIG), pytest.raises(EnvironmentProblem, match="File too large") as caught:
        prune_model(model, tmp_path / "out.onnx", 0.9)
    assert caught.value.exit_code == 4
    assert files(tmp_path) == ["m.onnx"]


def test_cache_that_cannot_be_written_costs_time_only(tmp_path, monkeypatch):
    monkeypatch.setattr(nvcc, "cubin_folder", lambda: tmp_path / "cubin")
    with full_disk(BIG):
        nvcc._write_cached("a", bytes(2 * BIG))
    assert files(tmp_path / "cubin") == []
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setattr(nvcc, "cubin_folder", lambda: tmp_path / "file" / "cubin")
    nvcc._write_cached("a", b"x")
    assert nvcc._read_cached("a") is None


@pytest.fixture
def _no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user of whom neither HOME nor the password file knows a home; then "~" stays "~"."""
    for name in ("HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "SPARSETVM_LOG_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda _: (_ for _ in ()).throw(KeyError("no such user")))
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("_no_home")
def test_user_without_a_home_is_told_to_name_a_log_folder(tmp_path):
    with pytest.raises(LogError, match="no home folder") as caught:
        check_writable(location.log_dir())
    assert "--log-dir" in str(caught.value)
    check_writable(location.log_dir(tmp_path / "logs"))
    assert nvcc.cubin_folder() is None
    nvcc._write_cached("a", b"x")
    assert nvcc._read_cached("a") is None
    assert files(tmp_path) == ["logs"]


@pytest.mark.usefixtures("_no_home")
def test_user_without_a_home_can_inspect_and_read_logs(tmp_path):
    model = mlp().save(tmp_path / "m.onnx")
    for words in (["inspect", str(model)], ["log", "ls"]):
        result = CliRunner().invoke(cli, words)
        assert result.exit_code == 0, result.output
    assert CliRunner().invoke(cli, ["cache", "info"]).exit_code == 4
    assert files(tmp_path) == ["m.onnx"]


def test_times_before_those_of_older_records_change_no_rule():
    """The clock was set back: a final result counts before those of the search, and nothing fails to compare."""
    index = RecordIndex()
    index.add(record(50.0, time="2026-01-02T00:00:00Z"))
    index.add(record(60.0, config=OTHER_CONFIG, stage="final", time="1970-01-01T00:00:00Z", run="a"))
    index.add(record(70.0, stage="final", time="1970-01-01T00:00:00Z", run="a"))
    found = index.best(WORKLOAD, DEVICE, lambda *_: True, toolchain=TOOLCHAIN)
    assert found.record is not None
    assert found.record.config in (CONFIG, OTHER_CONFIG)
    assert found.record.stage == "final"


def test_records_of_the_future_are_listed_as_recent_ones():
    """The clock was ahead when they were written."""
    assert age("9999-12-31T23:59:59Z") == "just now"
    assert age("0001-01-01T00:00:00+23:59").endswith(" d")


def test_no_duration_is_told_by_the_clock_that_can_jump():
    """Limits, budgets and times are those of a monotonic clock; the time of day only says when a record was written."""
    source = Path(__file__).parents[2]
    for folder in ("sparsetvm", "schedules"):
        for path in (source / folder).rglob("*.py"):
            assert not re.search(r"\btime\.time(_ns)?\(|from time import time\b", path.read_text()), path
    tells = [path.name for path in (source / "sparsetvm").rglob("*.py") if "datetime.now" in path.read_text()]
    assert sorted(tells) == ["maintenance.py", "outcome.py"]


@pytest.mark.parametrize(
    "words",
    [["prune", "m.onnx", "--sparsity", "0.9", "-o"], ["inspect", "m.onnx", "--json"], ["log", "merge", "log", "-o"],
     ["log", "export", "log", "-o"]], ids=" ".join,
)  # fmt: skip
def test_folder_that_nobody_can_write_is_named_with_the_next_step(words, tmp_path, monkeypatch):
    """/proc, since rights stop no administrator."""
    monkeypatch.chdir(tmp_path)
    mlp().save(tmp_path / "m.onnx")
    append(tmp_path / "log" / "cpu-a.jsonl", record())
    result = CliRunner().invoke(cli, [*words, "/proc/out.json"])
    assert result.exit_code in (2, 4, 7), result.output
    assert "/proc/out.json" in result.stderr
    assert "next step" in result.stderr
    assert "bug in sparsetvm" not in result.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/tmp/x\x1b[0m"), 4),
        (OSError(errno.EROFS, "Read-only file system"), 4),
        (OSError(errno.EMFILE, "Too many open files"), 4),
        (FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']"), 4),
        (MemoryError(), 4),
        (FileNotFoundError(errno.ENOENT, "No such file", "x"), 1),
        (ZeroDivisionError("x"), 1),
    ],
)
def test_what_the_machine_refuses_is_no_bug(error, code, tmp_path, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("sparsetvm.api.inspect", fail)
    result = CliRunner().invoke(cli, ["inspect", str(mlp().save(tmp_path / "m.onnx"))])
    assert result.exit_code == code
    assert ("bug in sparsetvm" in result.stderr) == (code == 1)
    assert "\x1b" not in result.output


def test_full_output_is_no_bug(tmp_path):
    model = mlp().save(tmp_path / "m.onnx")
    result = CliRunner().invoke(cli, ["inspect", str(model), "--json", "/dev/full"])
    assert result.exit_code == 2
    assert "No space left" in result.stderr


def test_lock_that_cannot_be_made_names_the_next_step(tmp_path, monkeypatch):
    def read_only(*_: object, **__: object) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(journal.os, "open", read_only)
    with pytest.raises(SparseTvmError, match="Read-only file system") as caught:
        append(tmp_path / "cpu-a.jsonl", record())
    assert caught.value.exit_code == 7
    assert "--log-dir" in str(caught.value)
