"""What users get wrong: each case ends with its documented exit code and a message that names the next step."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from models import ModelBuilder, conv_net, mlp

import sparsetvm
from sparsetvm.cli.main import cli
from sparsetvm.core.target import cpu_flags
from sparsetvm.settings import VARIABLES

pytestmark = pytest.mark.skipif("avx2" not in cpu_flags(), reason="needs AVX2")


@pytest.fixture(autouse=True)
def clean_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*VARIABLES, "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return mlp((12, 16, 4), batch=4).save(tmp_path / "m.onnx")


def command(*words: object) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words])


def check(result: Result, code: int, *says: str) -> None:
    assert result.exit_code == code, result.output
    assert "bug in sparsetvm" not in result.stderr
    assert [text for text in says if text not in result.stderr] == [], result.stderr


COMMANDS = [["inspect"], ["compile", "-o", "m.so"], ["tune", "--trials", "1"]]


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
@pytest.mark.parametrize("content", [b"this is no ONNX file\n" * 20, b"", b"\x7fELF\x02\x01\x01" + bytes(200)])
def test_file_that_is_no_onnx_is_rejected(words: list[str], content: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    check(command(*words, "m.onnx"), 3, "m.onnx", "next step")
    assert not (tmp_path / "m.so").exists()


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_truncated_file_is_rejected(model: Path, share: float) -> None:
    content = model.read_bytes()
    model.write_bytes(content[: int(len(content) * share)])
    check(command("compile", model, "-o", "m.so"), 3, "m.onnx", "next step")


def test_missing_external_data_is_named(model: Path) -> None:
    onnx.save(onnx.load(model), model, save_as_external_data=True, location="weights.bin", size_threshold=0)
    check(command("inspect", model), 0)
    Path("weights.bin").unlink()
    check(command("inspect", model), 3, "weights.bin", "next step")
    check(command("compile", model, "-o", "m.so"), 3, "weights.bin", "next step")


def test_unsupported_operator_is_named_with_its_layers(tmp_path: Path) -> None:
    b = ModelBuilder("odd")
    x = b.input("x", (1, 8, 16))
    for name in ("first_odd", "second_odd"):
        x = b.op("Hardmax", x, name=name)
    b.op("NonZero", x, name="third_odd", out="y")
    b.output("y").save(tmp_path / "odd.onnx")
    result = command("compile", "odd.onnx", "-o", "m.so")
    check(result, 3, "NonZero", "third_odd", "next step")


def test_weights_that_are_no_floats_are_rejected_by_name(tmp_path: Path) -> None:
    b = ModelBuilder("ints")
    x = b.input("x", (2, 8), onnx.TensorProto.INT32)
    b.op("MatMul", x, b.const(np.ones((8, 4), np.int32), "w"), name="int_product", out="y")
    b.output("y").save(tmp_path / "ints.onnx")
    check(command("compile", "ints.onnx", "-o", "m.so"), 3, "int_product", "int32", "next step")


def test_zero_size_dimension_is_rejected(tmp_path: Path) -> None:
    b = ModelBuilder("empty")
    b.op("Relu", b.input("x", (0, 8)), out="y")
    b.output("y").save(tmp_path / "empty.onnx")
    check(command("compile", "empty.onnx", "-o", "m.so"), 3, "'x'", "next step")


def test_model_with_nothing_pruned_works_and_says_so(tmp_path: Path) -> None:
    conv_net(width=8, size=8, sparsity=0.0).save(tmp_path / "dense.onnx")
    check(command("inspect", "dense.onnx"), 0)
    done = command("compile", "dense.onnx", "-o", "m.so", "--threads", 1)
    check(done, 0, "nothing in this model is pruned")
    assert sparsetvm.verify("m.so", "dense.onnx").passed


@pytest.mark.parametrize(
    ("target", "says"),
    [("gpu", "gpu"), ("cpu,znver44", "did you mean 'znver4'"), ("cuda,sm_91", "did you mean 'sm_90'"), ("", "target")],
)
def test_unknown_target_is_a_usage_error(model: Path, target: str, says: str) -> None:
    for words in (["compile", "-o", "m.so"], ["inspect"], ["tune"]):
        check(command(*words, model, "--target", target), 2, says, "next step")


def test_old_cpu_name_is_refused_with_the_instruction_sets_that_work(model: Path) -> None:
    check(command("compile", model, "-o", "m.so", "--target", "cpu,core2"), 2, "core2", "AVX2", "next step")


def test_cpu_without_avx512_works_and_says_so(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSETVM_ISA", "avx2")
    check(command("compile", model, "-o", "m.so", "--threads", 1), 0, "no AVX-512")
    assert sparsetvm.verify("m.so", model).passed


@pytest.mark.parametrize("variables", [{"CXX": "/nonexistent"}, {"PATH": "/nonexistent"}], ids=lambda v: next(iter(v)))
def test_missing_compiler_is_an_environment_problem(
    model: Path, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    check(command("compile", model, "-o", "m.so"), 4, "no C++ compiler", "g++", "next step")
    refused = command("tune", model, "--trials", 2, "-o", "m.so", "--log-dir", "log")
    check(refused, 4, "no C++ compiler", "next step")
    assert not Path("log").exists()


def test_unwritable_log_folder_is_a_log_error_before_anything_is_measured(model: Path) -> None:
    Path("file").write_text("")
    check(command("tune", model, "--log-dir", "file/below"), 7, "file/below", "--log-dir", "next step")
    check(command("tune", model, "--log-dir", "/proc/self/nothing"), 7, "/proc/self/nothing", "next step")


def test_unwritable_output_is_an_environment_problem(model: Path) -> None:
    Path("file").write_text("")
    check(command("compile", model, "-o", "file/m.so"), 4, "file/m.so", "next step")
    check(command("compile", model, "-o", "missing/m.so"), 4, "missing/m.so", "next step")
    refused = command("tune", model, "-o", "file/m.so", "--log-dir", "log", "--trials", 2)
    check(refused, 4, "file/m.so", "next step")
    assert not Path("log").exists()  # found out before the search, not after it
    assert not list(Path().glob(".sparsetvm-*"))


def test_corrupt_log_line_is_skipped_counted_and_reported(model: Path) -> None:
    options = ("--threads", 1, "--log-dir", "log")
    check(command("tune", model, "--trials", 2, *options), 0)
    (journal,) = Path("log").glob("*.jsonl")
    whole = journal.read_bytes()
    journal.write_bytes(b"{not json\n" + whole + b'{"v": 999}\n')
    done = command("tune", model, "--dry-run", *options)
    check(done, 0, "2 bad lines", "line 1", "log check")
    checked = command("log", "check", "log")
    assert checked.exit_code == 7
    assert "2" in checked.output
    check(command("compile", model, "-o", "m.so", *options), 0, "2 bad lines")
    assert command("log", "check", "--repair", "log").exit_code == 0
    assert command("log", "check", "log").exit_code == 0
    assert journal.read_bytes() == whole


def test_ctrl_c_while_tuning_keeps_what_was_measured(model: Path) -> None:
    words = ["tune", str(model), "--threads", "1", "--log-dir", "log"]
    process = subprocess.Popen(
        [sys.executable, "-m", "sparsetvm", "-v", *words, "--effort", "max"],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stderr is not None
    seen = 0
    for line in process.stderr:
        seen += line.startswith("[trial]")
        if seen == 3:
            process.send_signal(signal.SIGINT)
            break
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 130, rest
    assert "run the same command to go on" in rest
    assert "Traceback" not in rest
    (journal,) = Path("log").glob("*.jsonl")
    kept = [json.loads(line) for line in journal.read_text().splitlines()]
    assert len(kept) >= 3
    assert command("log", "check", "log").exit_code == 0
    again = command(*words, "--trials", "3", "--json", "-")
    check(again, 0)
    assert json.loads(again.stdout)["trials_run"] <= 3
    assert len(journal.read_text().splitlines()) >= len(kept)


def test_verify_fails_beside_a_model_with_other_weights(model: Path, tmp_path: Path) -> None:
    assert command("compile", model, "-o", "m.so", "--threads", 1).exit_code == 0
    other = mlp((12, 16, 4), batch=4, seed=1).save(tmp_path / "other.onnx")
    check(command("verify", "m.so", "--reference", other), 5, "outputs differ", "next step")
    images = conv_net(width=8, size=8).save(tmp_path / "images.onnx")
    check(
        command("verify", "m.so", "--reference", images), 2, "input 'x' of shape [1, 3, 8, 8], not [4, 12]", "next step"
    )
    check(command("bench", "m.so", "--reference", images, "--seconds", "0.01"), 2, "input 'x'", "next step")


def test_damaged_library_is_refused(model: Path) -> None:
    assert command("compile", model, "-o", "m.so", "--threads", 1).exit_code == 0
    library = Path("m.so").read_bytes()
    Path("m.so").write_bytes(library[: len(library) // 2])
    check(command("verify", "m.so", "--reference", model), 3, "m.so", "next step")
    Path("m.so.json").write_text("{")
    check(command("run", "m.so", "-i", model), 3, "m.so.json", "next step")
