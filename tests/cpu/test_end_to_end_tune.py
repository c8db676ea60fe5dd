"""tune, compile, verify and what the log saves the next time, on models of a few thousand weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from models import ModelBuilder, bert, mlp
from onnx import numpy_helper

import sparsetvm
from sparsetvm.cli.main import cli
from sparsetvm.core.manifest import manifest_path, sha256_of
from sparsetvm.core.results import Event, TuneReport
from sparsetvm.core.target import cpu_flags
from sparsetvm.errors import NoCandidateError
from sparsetvm.settings import VARIABLES

pytestmark = pytest.mark.skipif("avx2" not in cpu_flags(), reason="needs AVX2")


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def small_net() -> ModelBuilder:
    """A dense first convolution, two pruned ones with a residual between them, and a pruned classifier: four tasks."""
    b = ModelBuilder("small", seed=3)
    x = b.relu(b.conv(b.input("x", (1, 3, 9, 9)), 3, 16, 3, name="stem"))
    x = b.relu(b.op("Add", b.conv(x, 16, 16, 3, sparsity=0.8, name="block/conv"), x))
    x = b.relu(b.conv(x, 16, 24, 1, sparsity=0.8, name="head"))
    x = b.op("Flatten", b.op("GlobalAveragePool", x), axis=1)
    b.gemm(x, 24, 10, sparsity=0.7, name="classifier", out="logits")
    return b.output("logits")


def mixed_net() -> ModelBuilder:
    """Depthwise, residual, concatenation and softmax in one network of two tasks."""
    b = ModelBuilder("mixed", seed=4)
    x = b.relu6(b.conv(b.input("x", (2, 8, 7, 7)), 8, 8, 3, groups=8))
    y = b.op("Add", b.conv(x, 8, 8, 1, sparsity=0.7), x)
    y = b.op("Concat", y, b.silu(x), axis=1)
    y = b.reduce_mean(y, [2, 3], keepdims=0)
    b.op("Softmax", b.gemm(y, 16, 6, sparsity=0.6), axis=-1, out="probabilities")
    return b.output("probabilities")


@dataclass
class Tuned:
    model: Path
    log: Path
    library: Path
    report: TuneReport

    def again(self, model: Path | None = None, **options: object) -> TuneReport:
        return sparsetvm.tune(model or self.model, **{"threads": 1, "log_dir": self.log, "effort": "quick", **options})


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    folder = tmp_path_factory.mktemp("tuned")
    model, library = small_net().save(folder / "small.onnx"), folder / "small.so"
    report = sparsetvm.tune(model, threads=1, trials=14, log_dir=folder / "log", output=library)
    return Tuned(model, folder / "log", library, report)


def command(*words: object) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words])


def with_other_weights(model: Path, path: Path, change: str) -> Path:
    """A copy with other non-zeros: other "values" in the same places, or the same number at other "places".

    Every column that was read is read still: dead channels of other numbers would give layers other shapes.
    """
    rng, loaded = np.random.default_rng(9), onnx.load(model)
    for tensor in loaded.graph.initializer:
        data = numpy_helper.to_array(tensor)
        if data.dtype == np.float32 and data.ndim > 1 and np.any(data == 0):
            rows = data.reshape(len(data), -1)
            if change == "values":
                rows = rows * rng.uniform(0.5, 2, rows.shape).astype(np.float32)
            else:
                rows = np.roll(rows, len(rows) // 2, axis=0)
            tensor.CopyFrom(numpy_helper.from_array(rows.reshape(data.shape), tensor.name))
    onnx.save(loaded, path)
    return path


def sources(report: TuneReport) -> set[str]:
    return {task.source for task in report.tasks}


def log_lines(folder: Path) -> list[str]:
    return [line for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]


def test_tune_measures_every_task_and_says_what_won(tuned: Tuned) -> None:
    report = tuned.report
    assert report.trials_run == 14
    assert report.statuses == {"ok": 14}
    assert [task.name for task in report.tasks] == ["stem", "block/conv", "head", "classifier"]
    assert sources(report) <= {"tuned", "dense"}
    assert all(task.best_us and task.dense_us and task.best_us <= task.dense_us for task in report.tasks)
    assert str(tuned.log) in report.log
    assert len(log_lines(tuned.log)) >= 14


def test_library_of_a_tuned_model_passes_verification(tuned: Tuned) -> None:
    report = sparsetvm.verify(tuned.library, tuned.model)
    assert report.passed
    assert report.rel_l2_error <= 1e-5
    assert [output.name for output in report.outputs] == ["logits"]


def test_manifest_says_what_was_built_from_what(tuned: Tuned) -> None:
    manifest = json.loads(manifest_path(tuned.library).read_text())
    assert manifest["library_sha256"] == sha256_of(tuned.library)
    assert manifest["model"]["name"] == "small.onnx"
    assert manifest["model"]["sha256"] == sha256_of(tuned.model)
    assert manifest["inputs"] == [{"name": "x", "shape": [1, 3, 9, 9], "dtype": "float32"}]
    assert manifest["outputs"] == [{"name": "logits", "shape": [1, 10], "dtype": "float32"}]
    assert (manifest["threads"], manifest["tolerances"]["rel_l2_error"]) == (1, 1e-5)
    chosen = {task.name: (task.config, task.source) for task in tuned.report.tasks}
    assert {layer["name"]: (layer["config"], layer["source"]) for layer in manifest["layers"]} == chosen
    assert all("candidates that were measured here" in layer["why"] for layer in manifest["layers"])


def test_manifest_says_why_each_record_was_or_was_not_used(tuned: Tuned, tmp_path: Path) -> None:
    for name, reuse, reason in (("a", True, ": taken"), ("b", False, "no record may be used: reuse is off")):
        library = tmp_path / f"{name}.so"
        report = sparsetvm.compile(tuned.model, library, threads=1, log_dir=tuned.log, reuse=reuse)
        layers = json.loads(manifest_path(library).read_text())["layers"]
        assert all(reason in layer["why"] for layer in layers)
        assert [layer["why"] for layer in layers] == [layer["why"] for layer in report.layers]


def test_second_tune_runs_no_trial(tuned: Tuned) -> None:
    before = log_lines(tuned.log)
    report = tuned.again()
    assert (report.trials_run, report.reused, sources(report)) == (0, 4, {"exact"})
    assert [task.config for task in report.tasks] == [task.config for task in tuned.report.tasks]
    assert log_lines(tuned.log) == before


def test_tune_runs_no_trial_when_only_the_values_changed(tuned: Tuned, tmp_path: Path) -> None:
    copy = with_other_weights(tuned.model, tmp_path / "values.onnx", "values")
    report = tuned.again(copy, output=tmp_path / "values.so")
    assert (report.trials_run, sources(report)) == (0, {"exact"})
    assert sparsetvm.verify(tmp_path / "values.so", copy).passed


def test_tune_checks_but_searches_nothing_when_the_places_changed(tuned: Tuned, tmp_path: Path) -> None:
    copy = with_other_weights(tuned.model, tmp_path / "places.onnx", "places")
    explained = command("log", "best", copy, "--why", "--threads", 1, "--log-dir", tuned.log)
    assert explained.exit_code == 0
    assert explained.output.count("compatible") >= 3
    report = tuned.again(copy, output=tmp_path / "places.so")
    assert report.trials_run == 0
    assert [task.source for task in report.tasks] == ["exact", *["compatible"] * 3]
    assert sparsetvm.verify(tmp_path / "places.so", copy).passed


def test_no_reuse_measures_again(tuned: Tuned, tmp_path: Path) -> None:
    log = tmp_path / "log"
    report = tuned.again(reuse=False, trials=4, log_dir=log, records=[tuned.log])
    assert report.trials_run == 4
    assert report.reused == 0


def test_records_are_read_and_never_written(tuned: Tuned, tmp_path: Path) -> None:
    before = log_lines(tuned.log)
    report = tuned.again(log_dir=tmp_path / "other", records=[tuned.log])
    assert (report.trials_run, report.reused) == (0, 4)
    assert log_lines(tuned.log) == before


def test_dry_run_measures_and_writes_nothing(tuned: Tuned, tmp_path: Path) -> None:
    report = tuned.again(log_dir=tmp_path / "log", dry_run=True, output=tmp_path / "m.so")
    assert (report.trials_run, sources(report)) == (0, {"default"})
    assert list(tmp_path.iterdir()) == []
    assert sources(tuned.again(dry_run=True)) == {"exact"}


def test_tasks_selects_by_name_and_number(tuned: Tuned, tmp_path: Path) -> None:
    listed = command("tune", tuned.model, "--tasks", "list", "--log-dir", tmp_path / "log")
    assert listed.exit_code == 0
    assert "block/conv" in listed.stdout
    report = tuned.again(log_dir=tmp_path / "log", tasks="classifier,2", trials=2)
    assert [task.name for task in report.tasks] == ["block/conv", "classifier"]
    wrong = command("tune", tuned.model, "--tasks", "block/conf", "--log-dir", tmp_path / "log")
    assert wrong.exit_code == 2
    assert "did you mean 'block/conv'" in wrong.stderr


def test_compile_takes_records_and_require_tuned_needs_them(tuned: Tuned, tmp_path: Path) -> None:
    options = ("--threads", 1, "-o", tmp_path / "m.so", "--require-tuned")
    refused = command("compile", tuned.model, *options, "--log-dir", tmp_path / "none")
    assert refused.exit_code == NoCandidateError.exit_code == 6
    assert "block/conv" in refused.stderr
    assert "sparsetvm tune" in refused.stderr
    assert not (tmp_path / "m.so").exists()
    done = command("compile", tuned.model, *options, "--log-dir", tuned.log)
    assert done.exit_code == 0, done.stderr
    layers = json.loads((tmp_path / "m.so.json").read_text())["layers"]
    assert {layer["source"] for layer in layers} == {"exact"}
    assert [layer["config"] for layer in layers] == [task.config for task in tuned.report.tasks]


@pytest.mark.parametrize("build", [lambda: mlp(batch=1), lambda: mlp(batch=20), bert, mixed_net])
def test_tune_compile_verify_and_bench_through_the_command_line(build, tmp_path: Path) -> None:
    model, library, log = build().save(tmp_path / "m.onnx"), tmp_path / "m.so", tmp_path / "log"
    done = command("tune", model, "--threads", 1, "--trials", 4, "--log-dir", log, "-o", library, "--json", "-")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["statuses"] == {"ok": 4}
    verified = command("verify", library, "--reference", model, "--json", "-")
    assert verified.exit_code == 0, verified.stderr
    assert json.loads(verified.stdout)["rel_l2_error"] <= 1e-5


def test_bench_and_run_take_the_library(tuned: Tuned, tmp_path: Path) -> None:
    done = command("bench", tuned.library, "--seconds", "0.05", "--json", "-")
    assert done.exit_code == 0, done.stderr
    assert set(json.loads(done.stdout)["speedup"]) == {"ort", "dense"}
    np.savez(tmp_path / "in.npz", x=np.ones((1, 3, 9, 9), np.float32))
    ran = command("run", tuned.library, "-i", tmp_path / "in.npz", "-o", tmp_path / "out.npz")
    assert ran.exit_code == 0, ran.stderr
    assert np.load(tmp_path / "out.npz")["logits"].shape == (1, 10)


def test_two_threads_compile_and_verify(tuned: Tuned, tmp_path: Path) -> None:
    sparsetvm.compile(tuned.model, tmp_path / "m.so", threads=2, log_dir=tuned.log)
    manifest = json.loads((tmp_path / "m.so.json").read_text())
    assert manifest["threads"] == 2
    assert "exact" not in {layer["source"] for layer in manifest["layers"]}  # records of one thread are for one
    assert sparsetvm.verify(tmp_path / "m.so", tuned.model).passed


def test_avx2_compiles_verifies_and_says_so(tuned: Tuned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSETVM_ISA", "avx2")
    done = command("compile", tuned.model, "--threads", 1, "-o", tmp_path / "m.so", "--log-dir", tmp_path / "log")
    assert done.exit_code == 0, done.stderr
    assert "no AVX-512" in done.stderr
    assert json.loads((tmp_path / "m.so.json").read_text())["target"]["isa"] == "avx2"
    assert sparsetvm.verify(tmp_path / "m.so", tuned.model).passed


def test_tune_measures_avx2_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSETVM_ISA", "avx2")
    notes: list[Event] = []
    model = mlp((16, 24, 8), batch=9).save(tmp_path / "m.onnx")
    report = sparsetvm.tune(model, threads=1, trials=4, log_dir=tmp_path / "log", progress=notes.append)
    assert report.statuses == {"ok": 4}
    assert any("no AVX-512" in event.message for event in notes)


def test_cross_compile_writes_a_library_for_the_other_core(tuned: Tuned, tmp_path: Path) -> None:
    report = sparsetvm.compile(tuned.model, tmp_path / "m.so", target="cpu,znver4", threads=1, log_dir=tuned.log)
    assert report.target.startswith("cpu,znver4")
    assert json.loads((tmp_path / "m.so.json").read_text())["target"]["mcpu"] == "znver4"
    assert (tmp_path / "m.so").stat().st_size > 0


class Stop(Exception):
    """What a caller's own progress raises."""


def test_callback_that_raises_ends_the_tune_and_loses_nothing(tmp_path: Path) -> None:
    model = mlp((16, 24, 8), batch=9).save(tmp_path / "m.onnx")
    seen: list[str] = []

    def stop(event: Event) -> None:
        seen.append(event.kind)
        if seen.count("trial") == 2:
            raise Stop

    with pytest.raises(Stop):
        sparsetvm.tune(model, threads=1, trials=20, log_dir=tmp_path / "log", progress=stop)
    (log,) = (tmp_path / "log").glob("*.jsonl")
    assert len(log.read_text().splitlines()) >= 2
    assert seen.count("trial") == 2
