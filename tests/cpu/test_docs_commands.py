"""Every `sparsetvm` command that documents and `--help` show is run: on the shipped example, one trial, short times."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from doc_commands import help_examples, sparsetvm_commands

from sparsetvm.cli.main import cli
from sparsetvm.core.target import cpu_flags
from sparsetvm.examples import digits_path

pytestmark = pytest.mark.skipif("avx2" not in cpu_flags(), reason="needs AVX2")
pytest.importorskip("onnxruntime", reason="needs onnxruntime, for verify and bench")

# What stands for the reader's own: names, sizes, times.
_FOR = {
    "MODEL": "model.onnx", "OUT": "pruned.onnx", "RUN": "last", "NAME": "fc1", "A": "logs", "B": "logs",
    "OUT.jsonl": "all.jsonl", "x=1x3x224x224": "image=1x1x8x8",
    "x=33x3x224x224": "image=3x1x8x8", "1s": "10ms", "cpu,NAME": "cpu,znver4",
    "log.jsonl": "all.jsonl",
}  # fmt: skip
_ELSEWHERE = re.compile(r"cuda|--tracker|worker")  # run by tests/gpu and by the tests of the fleet
_ORDER = ("inspect", "prune", "tune", "compile", "run", "verify", "bench", "report", "log", "cache", "completion")


def _command(line: str) -> tuple[str, ...]:
    """The words of a command, on our files, and quick."""
    words = [_FOR.get(word, word) for word in shlex.split(line.split(" #", maxsplit=1)[0])]
    words = ["1" if word == "N" else "2" if word == "8" else word for word in words]
    if "--budget" in words:
        at = words.index("--budget")
        words[at : at + 2] = []
    if words[0] == "tune":  # two of them measure, one of these compiles: workers take seconds to start
        words += ["--trials", "1"] if {"--report", "--no-reuse"} & set(words) else ["--dry-run"]
    if words[0] == "bench" and "--shape" in words:
        words[1] = "buckets.so"
    if words[0] == "bench":
        words += ["--seconds", "0.02", *(() if "--against" in words else ("--against", "ort"))]
    if words[0] in ("tune", "compile", "log", "inspect", "bench") and len(words) == 1:
        words.append("model.onnx")
    return tuple(words)


def _commands() -> list[tuple[str, ...]]:
    """Each once, in an order in which later ones find what they need; those for GPUs are run by tests/gpu."""
    lines = {line for _, line in (*sparsetvm_commands(), *help_examples()) if not _ELSEWHERE.search(line)}
    # What a sentence leaves out of a command is all that its parser asks for: nothing to run.
    whole = {_command(line) for line in lines if not _is_part(line)}
    return sorted(whole, key=lambda words: (_step(words), "-o" not in words, words))


def _step(words: tuple[str, ...]) -> int:
    return _ORDER.index("run" if words[0] == "inspect" and "model.so" in words else words[0])


def _is_part(line: str) -> bool:
    return line in ("log best --why", "log export", "compile --target cpu,NAME")


def test_commands_of_the_documents_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPARSETVM_LOG_DIR", str(tmp_path / "logs"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copy(digits_path(), "model.onnx")
    Path("all.jsonl").touch()
    np.savez("in.npz", image=np.zeros((1, 1, 8, 8), np.float32))
    commands = [("compile", "model.onnx", "--buckets", "1,2", "--threads", "1", "-o", "buckets.so"), *_commands()]
    assert {words[0] for words in commands} == set(_ORDER)
    failed = []
    for words in commands:
        result = CliRunner().invoke(cli, list(words))
        if result.exit_code:
            failed.append((shlex.join(words), result.output[-300:]))
    assert failed == []
    assert all((tmp_path / name).stat().st_size for name in ("out.npz", "report.html", "pruned.onnx", "my.toml"))


def test_commands_that_are_left_out_are_few():
    shown = {line for _, line in sparsetvm_commands()}
    assert {line for line in shown if _is_part(line)} <= shown
    assert sum(bool(_ELSEWHERE.search(line)) for line in shown) < 12 < len(shown) - 12
    assert not any(re.search(r"[A-Z]{3}", word) for words in _commands() for word in words)
