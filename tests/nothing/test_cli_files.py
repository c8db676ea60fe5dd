"""Commands that work on files of their own: cache, and arrays for run and bench."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from sparsetvm.cli.arrays import read_arrays, write_arrays
from sparsetvm.cli.main import cli
from sparsetvm.errors import UsageError


def test_arrays_come_back_as_written(tmp_path):
    path = str(tmp_path / "a.npz")
    write_arrays(path, {"x": np.arange(3.0), "input:0": np.ones((2, 2), np.int64)})
    back = read_arrays(path)
    assert set(back) == {"x", "input:0"}
    np.testing.assert_array_equal(back["x"], np.arange(3.0))


def test_npy_has_no_name(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(3))
    assert list(read_arrays(str(tmp_path / "a.npy"))) == [""]


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 torn"])
def test_broken_array_file_is_a_usage_error(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(UsageError, match="savez"):
        read_arrays(str(tmp_path / "a.npz"))


def test_pickled_arrays_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([{"an": "object"}], dtype=object))
    with pytest.raises(UsageError, match="cannot read"):
        read_arrays(str(tmp_path / "a.npz"))


def test_write_to_a_missing_folder_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="cannot write"):
        write_arrays(str(tmp_path / "missing" / "a.npz"), {"x": np.zeros(1)})


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "sparsetvm"


def test_cache_info_counts_files_and_bytes(cache):
    (cache / "deep").mkdir(parents=True)
    (cache / "deep" / "a").write_bytes(b"12345")
    result = CliRunner().invoke(cli, ["cache", "info", "--json", "-"])
    assert json.loads(result.stdout) == {"schema": 1, "folder": str(cache), "files": 1, "bytes": 5}


def test_cache_clear_deletes_inside_and_follows_no_link(cache, tmp_path):
    (cache / "deep").mkdir(parents=True)
    (cache / "deep" / "a").write_bytes(b"12345")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    (cache / "link").symlink_to(outside)
    assert CliRunner().invoke(cli, ["cache", "clear"]).exit_code == 0
    assert list(cache.iterdir()) == []
    assert (outside / "kept").exists()


def test_cache_commands_work_without_a_cache(cache):
    assert CliRunner().invoke(cli, ["cache", "info"]).exit_code == 0
    assert CliRunner().invoke(cli, ["cache", "clear"]).exit_code == 0
