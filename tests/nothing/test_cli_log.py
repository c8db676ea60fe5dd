"""`sparsetvm log` on a log written here."""

import csv
import json

import pytest
from click.testing import CliRunner

from sparsetvm.cli.main import cli
from sparsetvm.core.config import Config
from sparsetvm.core.layout import PLAIN
from sparsetvm.core.pattern import PatternSummary
from sparsetvm.core.record import Record
from sparsetvm.core.target import device_fingerprint, host_target, toolchain_fingerprint
from sparsetvm.core.workload import Epilogue, Workload
from sparsetvm.log.journal import append


def record(m=64, times=(10.0,), status="ok", template="x86.unknown"):
    pattern = PatternSummary(
        kind="unstructured", block=(1, 1), density=0.1, row_imbalance=1.0, empty_rows=0, digest="0" * 16
    )
    return Record(
        workload=Workload("matmul", m, 128, 32, PLAIN, PLAIN, Epilogue(), pattern), config=Config.of(template, rows=28),
        status=status, device=device_fingerprint(host_target(1)), toolchain=toolchain_fingerprint(), template_version=1,
        space="0" * 12, times_us=times, time="2026-01-01T00:00:00Z",
    )  # fmt: skip


@pytest.fixture
def log(tmp_path, monkeypatch):
    for name in ("SPARSETVM_LOG_DIR", "SPARSETVM_RECORDS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tuning_logs" / "cpu.jsonl"
    append(path, record(), record(times=(9.0,)), record(m=65, times=(), status="crash"))
    return path


def run(line):
    return CliRunner().invoke(cli, line.split())


def test_ls_has_one_row_per_task(log):
    rows = json.loads(run("log ls --json -").stdout)["rows"]
    assert [(row["trials"], row["failed"], row["best_us"]) for row in rows] == [(2, 0, 9.0), (1, 1, None)]
    text = run("log ls").stdout
    assert "matmul 64x128 n=32" in text
    assert rows[0]["workload_id"][:8] in text
    assert max(map(len, text.splitlines())) <= 120


def test_ls_reads_the_paths_it_is_given(log, tmp_path):
    append(tmp_path / "other.jsonl", record(m=99))
    assert len(json.loads(run("log ls other.jsonl --json -").stdout)["rows"]) == 1


def test_ls_without_a_log_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSETVM_LOG_DIR", str(tmp_path / "none"))
    result = run("log ls")
    assert result.exit_code == 0
    assert "no records yet" in result.stdout


def test_check_names_bad_lines_and_exits_7_until_repaired(log):
    assert run("log check").exit_code == 0
    log.write_bytes(log.read_bytes() + b'{"schema": 1, "torn')
    result = run("log check")
    assert result.exit_code == 7
    assert "line 4" in result.stdout
    assert "--repair" in result.stderr
    assert "1 damaged lines" in run("log ls").stderr
    document = json.loads(run("log check --json -").stdout)
    assert len(document["files"][0]["bad"]) > 0
    repaired = run("log check --repair")
    assert repaired.exit_code == 0
    assert ".bak" in repaired.stdout
    assert json.loads(run("log check --json -").stdout)["files"][0]["bad"] == []


def test_check_of_a_missing_log_is_a_log_error(log):
    assert run("log check nowhere.jsonl").exit_code == 7


def test_merge_keeps_each_record_once(log, tmp_path):
    append(tmp_path / "other.jsonl", record(), record(m=66))
    result = run("log merge tuning_logs other.jsonl -o all.jsonl --json -")
    assert json.loads(result.stdout)["records"] == 4


def test_export_writes_csv(log, tmp_path):
    assert run("log export -o out.csv").exit_code == 0
    with (tmp_path / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["ok", "ok", "crash"]


def test_export_writes_t4(log, tmp_path):
    assert json.loads(run("log export --format t4 -o out.json --json -").stdout)["format"] == "t4"
    results = json.loads((tmp_path / "out.json").read_text())["results"]
    assert [result["invalidity"] for result in results] == ["correct", "correct", "runtime"]


def test_merge_counts_the_lines_it_skips(log):
    log.write_bytes(log.read_bytes() + b"junk\n")
    result = run("log merge tuning_logs -o all.jsonl --json -")
    assert json.loads(result.stdout)["skipped"] == 1
    assert "1 damaged lines" in result.stderr


def test_compact_says_what_is_left_and_keeps_the_old_file(log):
    result = run("log compact")
    assert result.exit_code == 0
    assert "3 records, 2 left" in result.stdout
    assert log.with_name("cpu.jsonl.bak").exists()
    document = json.loads(run("log compact --json -").stdout)
    assert (document["files"][0]["before"], document["files"][0]["backups"]) == (2, [])


def test_best_of_an_id_explains_its_decision(log):
    name = record().workload.id
    task = json.loads(run(f"log best {name[:8]} --json -").stdout)["tasks"][0]
    assert (task["workload_id"], task["decision"], task["config"]) == (name, "none", None)
    assert "not a config of the local template" in run(f"log best {name[:8]} --why").stdout


def test_best_of_an_unknown_id_is_a_usage_error(log):
    result = run("log best ffffffffffff")
    assert result.exit_code == 2
    assert "log ls" in result.stderr
