"""The command line over a fake API: options, exit codes, JSON, what goes to which stream."""

import json
import re
import subprocess
import sys
import types

import msgspec
import pytest
from click.testing import CliRunner

import sparsetvm
from sparsetvm import errors
from sparsetvm.cli.main import COMMANDS, cli
from sparsetvm.core import results
from sparsetvm.examples import example_path


def layer(**changes):
    fields = {
        "name": "conv1", "op": "conv2d", "shape": "3x3 64->64 56x56", "sparsity": 0.9, "pattern": "unstructured",
        "row_imbalance": 1.5, "empty_rows": 0, "nnz": 3686, "expected_speedup": 6.2, "verdict": "sparse", "reason": "",
    }  # fmt: skip
    return results.LayerReport(**{**fields, **changes})


def tune_report(**changes):
    task = results.TaskReport(
        name="conv1", workload="conv2d 3x3 64->64 56x56", pattern="unstructured", sparsity=0.9, count=2,
        dense_us=812.0, best_us=101.5, speedup=8.0, trials=64, source="tuned", config="Config.of('x86.pattern_code')",
    )  # fmt: skip
    fields = {
        "model": "m.onnx", "target": "cpu,znver4", "device": "a CPU", "threads": 1, "trials_run": 64, "reused": 0,
        "seconds": 12.0, "log": "tuning_logs/cpu.jsonl", "seed": 0, "statuses": {"ok": 63, "crash": 1}, "tasks": [task],
    }  # fmt: skip
    return results.TuneReport(**{**fields, **changes})


LATENCY = results.Latency(median=1.0, p90=1.1, p99=1.2, min=0.9, repeats=100)
REPORTS = {
    "inspect": results.InspectReport(model="m.onnx", target="cpu,znver4", layers=[layer(), layer(verdict="dense")]),
    "tune": tune_report(),
    "compile": results.CompileReport(
        model="m.onnx", target="cpu,znver4", output="m.so", manifest="m.so.json", seconds=1.0,
        layers=[{"name": "conv1"}]
    ),
    "verify": results.VerifyReport(
        passed=True, tolerance=1e-5, rel_l2_error=1e-6, max_abs_error=1e-5,
        outputs=[results.OutputError(name="y", rel_l2_error=1e-6, max_abs_error=1e-5)],
    ),
    "bench": results.BenchReport(
        model="m.so", threads=1, latency_ms=LATENCY, against={"ort": LATENCY}, speedup={"ort": 4.9}, notes=["a note"]
    ),
    "prune": results.PruneReport(
        model="m.onnx", output="p.onnx", pattern="unstructured", sparsity=0.9,
        layers=[{
            "name": "conv1", "shape": "64x576", "sparsity_before": 0.0, "sparsity": 0.9, "pruned": True, "reason": ""}],
    ),
}  # fmt: skip


class FakeApi(types.ModuleType):
    """Stands for sparsetvm.api: remembers the calls, returns canned reports or raises."""

    def __init__(self):
        super().__init__("sparsetvm.api")
        self.calls = {}
        self.reports = dict(REPORTS)
        self.error = None
        for name in REPORTS:
            setattr(self, name, self._function(name))

    def _function(self, name):
        def call(*args, **kwargs):
            self.calls[name] = (args, kwargs)
            if self.error is not None:
                raise self.error
            return self.reports[name]

        return call


@pytest.fixture
def api(monkeypatch):
    fake = FakeApi()
    monkeypatch.setitem(sys.modules, "sparsetvm.api", fake)
    monkeypatch.setattr(sparsetvm, "api", fake, raising=False)
    return fake


@pytest.fixture
def run(api, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.onnx").write_bytes(b"model")
    (tmp_path / "m.so").write_bytes(b"library")
    return lambda line: CliRunner().invoke(cli, line.split())


LINES = {
    "inspect": "inspect m.onnx",
    "tune": "tune m.onnx",
    "compile": "compile m.onnx -o m.so",
    "verify": "verify m.so --reference m.onnx",
    "bench": "bench m.so",
    "prune": "prune m.onnx --sparsity 0.9 -o p.onnx",
}


@pytest.mark.parametrize("name", LINES)
def test_command_prints_its_table_and_exits_0(run, name):
    result = run(LINES[name])
    assert result.exit_code == 0, result.output
    assert "conv1" in result.stdout or "4.90x" in result.stdout or "passed" in result.stdout
    assert "\x1b" not in result.output
    assert max(map(len, result.stdout.splitlines())) <= 100


@pytest.mark.parametrize("name", LINES)
def test_json_on_stdout_is_the_report_alone(run, api, name):
    result = run(LINES[name] + " --json -")
    assert json.loads(result.stdout) == json.loads(api.reports[name].to_json())
    assert json.loads(result.stdout)["schema"] == 1


def test_json_before_the_command_writes_a_file_and_keeps_the_table(run, tmp_path):
    result = run("--json out.json inspect m.onnx")
    assert "conv1" in result.stdout
    assert json.loads((tmp_path / "out.json").read_text())["layers"][0]["name"] == "conv1"


def test_json_to_an_unwritable_path_is_a_usage_error(run):
    result = run("inspect m.onnx --json missing/out.json")
    assert result.exit_code == 2
    assert "missing/out.json" in result.stderr


ERRORS = [
    (errors.UsageError, 2), (errors.TargetError, 2), (errors.ModelError, 3), (errors.EnvironmentProblem, 4),
    (errors.VerificationError, 5), (errors.NoCandidateError, 6), (errors.LogError, 7), (errors.Interrupted, 130),
    (errors.SparseTvmError, 1),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "code"), ERRORS)
def test_error_becomes_its_exit_code_with_layer_and_next_step(run, api, kind, code):
    api.error = kind("it is broken", hint="mend it", layer="conv1")
    result = run("inspect m.onnx")
    assert result.exit_code == code
    assert result.stdout == ""
    assert "layer 'conv1': it is broken" in result.stderr
    assert "next step: mend it" in result.stderr


def test_every_error_class_is_covered():
    def tree(kind):
        return {kind}.union(*map(tree, kind.__subclasses__()))

    ours = {kind for kind in tree(errors.SparseTvmError) if kind.__module__ == "sparsetvm.errors"}
    assert ours == {kind for kind, _ in ERRORS}


def test_error_is_json_too_when_json_is_asked_for(run, api):
    api.error = errors.ModelError("no model", hint="give one")
    result = run("inspect m.onnx --json -")
    assert json.loads(result.stdout)["error"] == {
        "kind": "ModelError", "message": "no model", "hint": "give one", "layer": None, "exit_code": 3,
    }  # fmt: skip


def test_unexpected_exception_is_called_a_bug_and_says_how_to_repeat(run, api):
    api.error = ZeroDivisionError("oops")
    result = run("inspect m.onnx")
    assert result.exit_code == 1
    assert "this is a bug" in result.stderr
    assert "sparsetvm -v inspect m.onnx" in result.stderr
    assert "Traceback" not in result.stderr
    assert "Traceback" in run("-v inspect m.onnx").stderr


def test_ctrl_c_exits_130(run, api):
    api.error = KeyboardInterrupt()
    result = run("inspect m.onnx")
    assert result.exit_code == 130
    assert "interrupted" in result.stderr


def test_interrupted_tune_prints_what_it_has_and_exits_130(run, api):
    api.reports["tune"] = tune_report(interrupted=True)
    result = run("tune m.onnx")
    assert result.exit_code == 130
    assert "conv1" in result.stdout
    assert "run the same command" in result.stderr


def test_failed_verification_exits_5_after_its_table(run, api):
    api.reports["verify"] = results.VerifyReport(
        passed=False, tolerance=1e-5, rel_l2_error=0.5, max_abs_error=1.0, outputs=[], notes=["why it may differ"]
    )
    result = run(LINES["verify"])
    assert result.exit_code == 5
    assert "FAILED" in result.stdout
    assert "note: why it may differ" in result.stdout


def test_tune_passes_every_option_on(run, api, tmp_path):
    (tmp_path / "more.jsonl").write_text("")
    line = (
        "tune m.onnx --target cpu,znver4 --threads 2 --trials 9 --budget 1h30m --early-stopping 5 --effort quick "
        "--tasks conv1,3-5 --records more.jsonl --log-dir logs --no-reuse --dry-run --seed 7 --jobs 2 "
        "--shape x=1x3x8x8 --shape y:0=4 -o out.so --report r.html --allow-tf32 --allow-fp16 "
        "--buckets n=1,8 --tracker here:9190 --key gpu --calibrate random"
    )
    assert run(line).exit_code == 0
    args, kwargs = api.calls["tune"]
    assert callable(kwargs.pop("progress"))
    assert args == ("m.onnx",)
    assert kwargs == {
        "target": "cpu,znver4", "threads": 2, "trials": 9, "budget": 5400.0, "early_stopping": 5, "effort": "quick",
        "tasks": "conv1,3-5", "records": ("more.jsonl",), "log_dir": "logs", "reuse": False, "dry_run": True, "seed": 7,
        "jobs": 2, "shapes": {"x": (1, 3, 8, 8), "y:0": (4,)}, "output": "out.so",
        "page": "r.html", "allow_tf32": True, "allow_fp16": True, "buckets": {"n": (1, 8)}, "tracker": "here:9190",
        "key": "gpu", "calibrate": "random",
    }  # fmt: skip


def test_tune_tasks_list_measures_nothing(run, api):
    result = run("tune m.onnx --tasks list -o out.so")
    kwargs = api.calls["tune"][1]
    assert (kwargs["dry_run"], kwargs["tasks"], kwargs["output"]) == (True, "all", None)
    assert "conv1" in result.stdout


def test_settings_are_echoed_on_stderr_unless_quiet(run):
    assert "tune: model=m.onnx, target=cpu, budget=90s" in run("tune m.onnx --budget 90s").stderr
    assert run("-q tune m.onnx").stderr == ""
    assert run("tune m.onnx -q").stderr == ""


def test_bench_passes_competitors_on(run, api):
    line = "bench m.so --against none --threads 2 --seconds 500ms --reference m.onnx --percentiles 95,99.9 --warm-up 1s"
    assert run(line).exit_code == 0
    args, options = api.calls["bench"]
    assert args == ("m.so",)
    assert callable(options.pop("progress"))
    assert options == {
        "against": (), "threads": 2, "instances": 1, "seconds": 0.5, "iterations": None, "warm_up": 1.0,
        "percentiles": (95.0, 99.9), "export_times": None, "inputs": None, "reference_model": "m.onnx", "target": "cpu",
        "shapes": None, "allow_tf32": False, "allow_fp16": False, "per_layer": False,
    }  # fmt: skip


def test_bench_orders_percentiles(run, api):
    latency = msgspec.structs.replace(LATENCY, percentiles={"p99.9": 7.0, "p75": 5.0})
    api.reports["bench"] = msgspec.structs.replace(api.reports["bench"], latency_ms=latency, against={"ort": latency})
    head = run("bench m.so").stdout.splitlines()[1]
    assert head.split()[:5] == ["p50", "p75", "p90", "p99", "p99.9"]


def test_next_command_repeats_the_options_that_it_needs(run):
    shown = run("inspect m.onnx --threads 2 --shape x=1x3 --shape a\\b=2").stdout
    assert "next: sparsetvm tune m.onnx --threads 2 --shape x=1x3 --shape 'a\\b=2' -o model.so" in shown
    assert "next: sparsetvm tune m.onnx -o model.so" in run("inspect m.onnx").stdout
    shown = run("tune m.onnx --threads 2 --trials 3 --allow-fp16").stdout
    assert "next: sparsetvm compile m.onnx --allow-fp16 --threads 2 -o model.so" in shown


def test_shipped_model_is_named_as_it_is_typed(run, api):
    path = str(example_path("digits"))
    api.reports["inspect"] = msgspec.structs.replace(api.reports["inspect"], model=path)
    shown = run("inspect example:digits").stdout
    assert shown.startswith("example:digits for")
    assert "next: sparsetvm tune example:digits" in shown
    assert path not in shown


def test_array_file_of_another_kind_is_named(run):
    result = run("bench m.so -i m.onnx")
    assert result.exit_code == 2
    assert "m.onnx': it is no .npz or .npy file" in result.stderr


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("tne m.onnx", "did you mean 'tune'?"),
        ("tune nothing.onnx", "nothing.onnx"),
        ("tune m.onnx --budget soon", "90s"),
        ("bench m.so --percentiles 0,50", "above 0"),
        ("bench m.so --percentiles most", "write 50,95,99.9"),
        ("bench m.so --seconds 1 --iterations 5", "the one or the other"),
        ("tune m.onnx --budget 0s", "longer than nothing"),
        ("tune m.onnx --shape x=1x0", "NAME=1x3x224x224"),
        ("tune m.onnx --threads 0", "threads"),
        ("inspect example:digit", "did you mean 'example:digits'?"),
        ("bench m.so --against ortt", "did you mean 'ort'?"),
        ("prune m.onnx --sparsity 1.0 -o p.onnx", "sparsity"),
        ("compile m.onnx", "--output"),
        ("completion tcsh", "bash"),
    ],
)
def test_nonsense_is_a_usage_error_that_says_what_to_write(run, line, says):
    result = run(line)
    assert result.exit_code == 2
    assert says in result.stderr
    assert "this is a bug" not in result.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(run, name):
    result = run(f"{name} --help")
    assert result.exit_code == 0
    assert "Usage: sparsetvm" in result.stdout


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("log", "cache", "completion")])
def test_every_command_takes_json(run, name):
    assert "--json" in run(f"{name} --help").stdout


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_completion_prints_a_script(run, shell):
    assert "_SPARSETVM_COMPLETE" in run(f"completion {shell}").stdout


@pytest.mark.parametrize("args", [["--help"], ["tune", "--help"], ["log", "ls", "--help"]])
def test_help_imports_neither_tvm_nor_numpy(args):
    code = (
        "import sys; sys.argv = ['sparsetvm', *sys.argv[1:]]\n"
        "from sparsetvm.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('LOADED', sorted({n.split('.')[0] for n in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=True)
    loaded = set(re.findall(r"'(\w+)'", done.stdout.split("LOADED")[1]))
    assert not loaded & {"tvm", "tvm_ffi", "numpy", "onnx", "rich", "msgspec", "scipy", "xgboost", "torch"}
    assert "Usage: sparsetvm" in done.stdout
