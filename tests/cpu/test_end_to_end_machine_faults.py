"""Machines that fail while models are tuned and compiled: clear messages, documented exit codes, nothing is lost."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from models import mlp

FILE_SIZE = 12 << 10  # less than any library has


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    mlp((12, 16, 4), batch=4).save(tmp_path / "m.onnx")
    (tmp_path / "tmp").mkdir()
    return tmp_path


def sparsetvm(folder: Path, *words: str, full_disk: bool = False, **variables: str) -> subprocess.CompletedProcess[str]:
    """The command in the folder, with a folder for temporary files of its own."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_SIZE, FILE_SIZE))

    environment = {**os.environ, "XDG_STATE_HOME": str(folder / "state"), "TMPDIR": str(folder / "tmp"), **variables}
    environment.update(PYTHONPATH=str(Path(__file__).parents[2]), PYTHONDONTWRITEBYTECODE="1")
    return subprocess.run(
        [sys.executable, "-m", "sparsetvm", *words], cwd=folder, capture_output=True, text=True, timeout=120,
        check=False, env=environment, preexec_fn=limit if full_disk else None,
    )  # fmt: skip


def check(result: subprocess.CompletedProcess[str], code: int, *says: str) -> None:
    assert result.returncode == code, result.stderr
    assert "bug in sparsetvm" not in result.stderr
    assert "Traceback" not in result.stderr
    assert [text for text in says if text not in result.stderr] == [], result.stderr


def left(folder: Path) -> list[str]:
    """What is there now beside the model."""
    found = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    return sorted(name for name in found if name != "m.onnx" and not name.endswith(".lock"))


def compiler(folder: Path, *lines: str) -> str:
    path = folder / "cxx"
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    "lines", [["kill -9 $$"], ["echo 'fatal error: no room' >&2", "exit 1"]], ids=["killed", "fails"]
)
def test_compiler_that_fails_is_an_environment_problem_and_the_old_library_stays(lines, folder):
    (folder / "m.so").write_bytes(b"old")
    (folder / "m.so.json").write_bytes(b"{}")
    result = sparsetvm(folder, "compile", "m.onnx", "-o", "m.so", CXX=compiler(folder, *lines))
    check(result, 4, "m.so' cannot be linked", "next step", *(["no room"] if len(lines) > 1 else []))
    assert (folder / "m.so").read_bytes() == b"old"
    assert left(folder) == ["cxx", "m.so", "m.so.json"]


def test_full_disk_while_compiling_is_an_environment_problem_and_leaves_nothing(folder):
    check(sparsetvm(folder, "compile", "m.onnx", "-o", "m.so", full_disk=True), 4, "File too large", "next step")
    assert left(folder) == []


def test_folders_that_nobody_can_write_are_environment_and_log_problems(folder):
    """/proc, since rights stop no administrator."""
    check(sparsetvm(folder, "compile", "m.onnx", "-o", "/proc/m.so"), 4, "cannot write '/proc/m.so'", "next step")
    words = ["tune", "m.onnx", "--trials", "1", "--threads", "1", "--log-dir", "/proc/log"]
    check(sparsetvm(folder, *words), 7, "cannot write tuning logs to /proc/log", "--log-dir")
    assert left(folder) == []


def test_two_tunes_of_one_model_at_once_keep_all_records(folder):
    words = [
        "tune",
        "m.onnx",
        "--trials",
        "2",
        "--effort",
        "quick",
        "--threads",
        "1",
        "--log-dir",
        "log",
        "--no-reuse",
        "--json",
        "-",
        "-q",
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "TMPDIR": str(folder / "tmp")}
    pipe = subprocess.PIPE
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "sparsetvm", *words], cwd=folder, stdout=pipe, stderr=pipe, env=environment
        )
        for _ in range(2)
    ]
    reports = [json.loads(process.communicate(timeout=120)[0]) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    (journal,) = (folder / "log").glob("*.jsonl")
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    runs = {line["record"]["run"] for line in lines}
    assert len(runs) == 2
    searched = [line for line in lines if line["record"].get("stage", "search") == "search"]
    assert len(searched) == sum(report["trials_run"] for report in reports)
    check(sparsetvm(folder, "log", "check", "log"), 0)
    assert left(folder) == [f"log/{journal.name}"]


def test_library_is_made_of_names_that_would_be_paths_code_and_control_characters(folder):
    """No symbol, file or variable of the build is named by the model."""
    import numpy as np
    from models import ModelBuilder

    import sparsetvm as package

    names = [
        "../../../tmp/a",
        "a\x1b[2J\nb",
        "<b>&\"'`$(id)`",
        "n" * 10_000,
        "%s{0}",
        "main",
        "sparsetvm_layer_0",
        "0",
        " ",
    ]
    builder = ModelBuilder()
    x = builder.input("../x\n", (1, 16))
    for name in names:
        weight = builder.const(builder.weight((16, 16), 16, 0.5), name)
        x = builder.op("MatMul", x, weight, name=name, out=f"{name}.y")
        x = builder.op("Tan", x, name=name)  # one of those that TVM's importer gets
    builder.output(x).save(folder / "odd.onnx")
    package.compile(folder / "odd.onnx", folder / "odd.so", threads=1, log_dir=folder / "none")
    with package.load(folder / "odd.so") as module:
        assert [info.name for info in module.inputs] == ["../x\n"]
        assert np.isfinite(module.run({"../x\n": np.zeros((1, 16), np.float32)})[x]).all()
    assert left(folder) == ["odd.onnx", "odd.so", "odd.so.json"]
