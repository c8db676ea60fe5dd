"""Options from a TOML file, and writing them down."""

import pytest
from click.testing import CliRunner

from sparsetvm.cli import main
from sparsetvm.cli.config import read_config


@pytest.fixture
def run(monkeypatch, tmp_path):
    """The command line over a fake `tune`; `run.calls` are its keyword arguments."""
    import sparsetvm
    from sparsetvm.errors import UsageError

    calls = []

    def tune(model, **options):
        calls.append(options)
        raise UsageError("enough")

    monkeypatch.setattr(sparsetvm, "api", type("Api", (), {"tune": staticmethod(tune)}), raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.onnx").write_bytes(b"")

    def call(line):
        return CliRunner().invoke(main.cli, line.split())

    call.calls = calls
    return call


def write(text):
    with open("c.toml", "w") as file:
        file.write(text)


TUNE = """
[tune]
threads = 3
budget = "2m"
shape = "x=1x3"
no-reuse = true
records = ["m.onnx"]
[log.ls]
shipped = true
"""


@pytest.mark.parametrize("line", ["--config c.toml tune m.onnx --threads 5", "tune --config c.toml m.onnx --threads 5"])
def test_file_gives_defaults_and_the_command_line_wins(run, line):
    write(TUNE)
    assert "enough" in run(line).stderr
    (options,) = run.calls
    assert (options["threads"], options["budget"], options["reuse"]) == (5, 120.0, False)
    assert (options["shapes"], options["records"], options["seed"]) == ({"x": (1, 3)}, ("m.onnx",), 0)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[tune]\nthread = 1", "did you mean 'threads'?"),
        ("[tun]\nthreads = 1", "did you mean 'tune'?"),
        ("[tune]\nbudget = 'soon'", "90s"),
        ("[tune]\nthreads = [1]", "expected one value"),
        ("[tune]\njson = '-'", "no option 'json'"),
        ("tune = 3", "no table"),
        ("tune", "no TOML"),
    ],
)
def test_nonsense_in_a_file_is_a_usage_error(run, text, says):
    write(text)
    result = run("tune m.onnx --config c.toml")
    assert result.exit_code == 2
    assert says in result.stderr
    assert run.calls == []


def test_missing_file_is_a_usage_error(run):
    assert "No such file" in run("--config none.toml tune m.onnx").stderr


def test_saved_options_are_read_back(run):
    write("[bench]\nthreads = 2\n")
    run(
        "tune m.onnx --threads 2 --budget 1m --shape x:0=1x3 --shape y=2 --no-reuse --records m.onnx "
        "--save-config c.toml"
    )
    assert read_config("c.toml") == {
        "bench": {"threads": 2},
        "tune": {
            "threads": 2, "budget": 60.0, "records": ["m.onnx"], "no-reuse": True, "shape": ["x:0=1x3", "y=2"]
        },
    }  # fmt: skip
    run("tune m.onnx --config c.toml")
    assert run.calls[0] == {**run.calls[1], "progress": run.calls[0]["progress"]}


def test_saving_a_command_of_a_group_keeps_its_place(run):
    assert run("log ls --shipped --save-config c.toml").exit_code == 0
    assert read_config("c.toml") == {"log": {"ls": {"shipped": True}}}
