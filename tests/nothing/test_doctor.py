"""The checks of `doctor`, with the parts of the machine replaced."""

import errno

import pytest

from sparsetvm.errors import TargetError
from sparsetvm.report import doctor


def test_each_failure_is_reported_and_none_stops_the_others(monkeypatch):
    def broken():
        raise RuntimeError("boom")

    def lacking():
        raise TargetError("this CPU lacks AVX2", hint="use another machine")

    monkeypatch.setattr(doctor, "_kernel", broken)
    monkeypatch.setattr(doctor, "_cpu", lacking)
    monkeypatch.setattr(doctor, "_measurement", broken)
    report = doctor.run_doctor()
    checks = {check["name"]: check for check in report.checks}
    assert not report.ok
    assert checks["kernel"]["detail"] == "RuntimeError: boom"
    assert checks["CPU"]["next_step"] == "use another machine"
    assert all(check["ok"] or check["next_step"] for check in report.checks)
    assert checks["cores"]["ok"]


@pytest.mark.parametrize(("version", "ok"), [("0.1.14.post1", True), ("0.1.15.post2", False), ("missing", False)])
def test_tvm_ffi_is_checked_against_the_version_that_crashes(monkeypatch, version, ok):
    monkeypatch.setattr(doctor, "version_of", lambda package: version)
    row = doctor._run("apache-tvm-ffi", doctor._tvm_ffi)
    assert row["ok"] is ok
    assert ok or "<0.1.15" in row["next_step"]


def test_wrong_tvm_version_names_the_right_one(monkeypatch):
    monkeypatch.setattr(doctor, "version_of", lambda package: "0.1")
    row = doctor._run("versions", doctor._versions)
    assert not row["ok"]
    assert doctor.TVM_VERSION in row["next_step"]


def test_missing_compiler_says_what_to_install(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    row = doctor._run("C++ compiler", doctor._compiler)
    assert not row["ok"]
    assert "g++" in row["next_step"]


def test_compiler_is_taken_from_cxx_first(monkeypatch, tmp_path):
    compiler = tmp_path / "my-c++"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    assert doctor.find_compiler() == str(compiler)


def test_writable_looks_at_the_nearest_folder_that_exists(tmp_path):
    assert doctor.is_writable(tmp_path / "not" / "yet")
    assert not (tmp_path / "not").exists()
    (tmp_path / "file").write_text("")
    assert not doctor.is_writable(tmp_path / "file")


def test_unknown_variable_is_a_finding(monkeypatch):
    monkeypatch.setenv("SPARSETVM_LOGDIR", "x")
    row = doctor._run("variables", doctor._variables)
    assert not row["ok"]
    assert "SPARSETVM_LOG_DIR" in row["detail"]


def test_version_is_that_of_the_code_also_where_nothing_is_installed(monkeypatch):
    """Records made from a checkout would otherwise fit no installation."""
    from importlib import metadata

    import sparsetvm
    from sparsetvm.core.target import toolchain_fingerprint

    def not_installed(package: str) -> str:
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "version", not_installed)
    toolchain_fingerprint.cache_clear()
    try:
        assert toolchain_fingerprint().sparsetvm == sparsetvm.__version__
    finally:
        toolchain_fingerprint.cache_clear()


def test_compiler_that_cannot_link_is_a_finding(monkeypatch, tmp_path):
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\necho no crti.o >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    row = doctor._run("C++ compiler", doctor._compiler)
    assert not row["ok"]
    assert "no crti.o" in row["detail"]


@pytest.mark.parametrize("error", [None, errno.EOPNOTSUPP])
def test_locks_are_tried_where_the_log_would_be(monkeypatch, tmp_path, error):
    def flock(*_):
        if error:
            raise OSError(error, "not supported")

    monkeypatch.setenv("SPARSETVM_LOG_DIR", str(tmp_path / "not" / "yet"))
    monkeypatch.setattr("fcntl.flock", flock)
    row = doctor._run("log locks", doctor._log_locks)
    assert row["ok"]
    assert ("has no locks" in row["detail"]) is (error is not None)
    assert list(tmp_path.iterdir()) == []


def test_report_does_not_name_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SPARSETVM_LOG_DIR", str(tmp_path / "logs"))
    assert doctor._run("log folder", doctor._log_folder)["detail"] == "~/logs, 0 logs, 0.0 MiB"
