"""bench_all spreads programs over GPUs, stops what takes too long, goes on where it stopped, says what went wrong."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import bench_all
import pytest
from benchlib.jobs import Job, Jobs

HANG = "import time; time.sleep(60)"


def job(out: Path, name: str, code: str, seconds: float = 1.0, limit: float = 20.0, whole: bool = False, rank: int = 0):
    """A program that runs `code` with `out` as its folder."""
    text = f"import json, os, sys, time, pathlib; out = pathlib.Path({str(out)!r}); name = {name!r}\n{code}"
    return Job(name, (sys.executable, "-S", "-c", text), seconds, limit, whole, rank)


def run(out: Path, jobs: Sequence[Job], devices: Sequence[str] = ("0", "1"), seconds: float = 60.0, **options):
    told: list[str] = []
    runner = Jobs(out, devices, told.append)
    return runner.run(jobs, seconds, **options), runner, told


def test_jobs_share_the_gpus_one_at_a_time_on_each(tmp_path: Path) -> None:
    note = "at = time.time(); time.sleep(.3)\n"
    note += "(out / f'{name}.txt').write_text(f'{os.environ[\"CUDA_VISIBLE_DEVICES\"]} {at} {time.time()}')"
    outcomes, _, _ = run(tmp_path, [job(tmp_path, f"j{number}", note) for number in range(5)])
    assert {outcome.state for outcome in outcomes.values()} == {"ok"}
    spans: dict[str, list[tuple[float, float]]] = {}
    for file in tmp_path.glob("j*.txt"):
        device, begin, end = file.read_text().split()
        spans.setdefault(device, []).append((float(begin), float(end)))
    assert set(spans) == {"0", "1"}
    for found in spans.values():
        found.sort()
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(found))


def test_what_needs_all_gpus_gets_them_and_runs_alone(tmp_path: Path) -> None:
    look = "others = ' '.join(p.name for p in out.glob('run-*'))\n"
    look += "(out / name).write_text(os.environ['CUDA_VISIBLE_DEVICES'] + ' ' + others)"
    busy = "(out / f'run-{name}').touch(); time.sleep(.3); (out / f'run-{name}').unlink()"
    jobs = [
        job(tmp_path, "a", busy, 3.0),
        job(tmp_path, "all", look, whole=True, rank=1),
        job(tmp_path, "b", busy, 2.0),
    ]
    outcomes, _, _ = run(tmp_path, [*jobs, job(tmp_path, "c", busy, rank=2)])
    assert (tmp_path / "all").read_text() == "0,1 "
    assert outcomes["all"].devices in (["0", "1"], ["1", "0"])


def test_late_job_is_stopped_with_all_it_started_and_its_rows_so_far_are_kept(tmp_path: Path) -> None:
    code = "import subprocess; child = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(60)'])\n"
    code += (
        "(out / 'child').write_text(str(child.pid)); (out / f'{name}.json').write_text(json.dumps({'rows': [{}]}))\n"
    )
    outcomes, runner, _ = run(tmp_path, [slow := job(tmp_path, "slow", code + HANG, limit=1.0)])
    assert outcomes["slow"].state == "timeout"
    assert runner.result(slow) == {"rows": [{}]}
    child = int((tmp_path / "child").read_text())
    for _ in range(100):
        try:
            state = Path(f"/proc/{child}/stat").read_text().split()[2]
        except OSError:
            return
        if state == "Z":
            return
        time.sleep(0.05)
    pytest.fail("the child of a job that was stopped still runs")


def test_second_run_does_what_failed_and_leaves_what_is_done(tmp_path: Path) -> None:
    count = "(out / f'{name}.runs').open('a').write('x')\n"
    good = job(tmp_path, "good", count)
    bad = job(tmp_path, "bad", count + "print('what went wrong'); sys.exit(0 if (out / 'mended').exists() else 3)")
    outcomes, _, _ = run(tmp_path, [good, bad])
    assert (outcomes["bad"].state, outcomes["bad"].code) == ("failed", 3)
    assert "what went wrong" in (tmp_path / "bad.log").read_text()
    (tmp_path / "mended").touch()
    outcomes, _, _ = run(tmp_path, [good, bad])
    assert [outcome.state for outcome in outcomes.values()] == ["ok", "ok"]
    assert [len((tmp_path / f"{name}.runs").read_text()) for name in ("good", "bad")] == [1, 2]
    run(tmp_path, [good, bad], again=True)
    assert len((tmp_path / "good.runs").read_text()) == 2
    run(tmp_path, [job(tmp_path, "good", count + "# another command")])
    assert len((tmp_path / "good.runs").read_text()) == 3


def test_what_does_not_fit_into_the_time_is_not_started(tmp_path: Path) -> None:
    jobs = [job(tmp_path, "short", "pass", 0.1), job(tmp_path, "long", "pass", 500.0)]
    outcomes, _, _ = run(tmp_path, jobs, seconds=30.0)
    assert {name: outcome.state for name, outcome in outcomes.items()} == {"short": "ok", "long": "no time"}
    assert json.loads((tmp_path / "jobs.json").read_text())["long"]["state"] == "no time"


def test_state_that_is_no_state_is_done_again(tmp_path: Path) -> None:
    (tmp_path / "jobs.json").write_text("[torn")
    outcomes, _, _ = run(tmp_path, [job(tmp_path, "a", "pass")])
    assert outcomes["a"].state == "ok"


def test_ctrl_c_stops_everything_and_the_next_run_goes_on(tmp_path: Path) -> None:
    script = f"""
import sys; sys.path[:0] = {sys.path!r}
from pathlib import Path
from benchlib.jobs import Job, Jobs
jobs = [Job(n, (sys.executable, "-S", "-c", c), 1.0, 60.0) for n, c in (("quick", "pass"), ("hangs", {HANG!r}))]
found = Jobs(Path({str(tmp_path)!r}), ["0"]).run(jobs, 100.0)
print({{name: outcome.state for name, outcome in found.items()}})
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while not (tmp_path / "hangs.log").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=30)
    assert "{'quick': 'ok', 'hangs': 'interrupted'}" in said
    known = json.loads((tmp_path / "jobs.json").read_text())
    assert {name: entry["state"] for name, entry in known.items()} == {"quick": "ok", "hangs": "interrupted"}


def test_ctrl_c_while_a_job_is_started_loses_none(tmp_path: Path) -> None:
    def interrupt(text: str) -> None:
        if "on GPU" in text:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    found = Jobs(tmp_path, ["0"], interrupt).run([job(tmp_path, "a", HANG, 2.0), job(tmp_path, "b", HANG)], 100.0)
    assert {name: outcome.state for name, outcome in found.items()} == {"a": "interrupted", "b": "interrupted"}
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (None, ""),
        ({"rows": [{"speedup": 2.0}, {"speedup": 8.0}, {"error": "x"}]}, "2 rows, 4.00x best dense, 1 FAILED"),
        ({"rows": [{"over_dense": 3.0}]}, "1 rows, 3.00x best dense"),
        ({"rows": [{"ours_ms": 0.4, "speedup": {"torch-fp32": 5.6}}]}, "0.400 ms torch-fp32 5.60x"),
        ({"rows": {"ours dense": {"us": 12.34}}}, "ours dense 12.3 us"),
        ({"rows": [{}, {}], "speedup": 1.9}, "1.90x one worker"),
        ({"tasks": [{"speedup": 4.0}, {"speedup": None}], "trials_run": 70}, "70 trials, 1 tasks, 4.00x dense"),
    ],
)
def test_headline_says_what_a_result_of_each_benchmark_shows(result: dict | None, text: str) -> None:
    assert bench_all.headline(result) == text


def models(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / f"{name}.onnx").touch()
    return folder


def test_list_has_every_benchmark_on_a_gpu_with_a_result_of_its_own(tmp_path: Path, capsys) -> None:
    models(tmp_path, "mlp_s95_b1", "other", "real_mobilenet_v1")
    options = ["--models", str(tmp_path), "--out", str(tmp_path / "out"), "--devices", "0,1", "--list"]
    assert bench_all.main(options) == 0
    lines = capsys.readouterr().out.splitlines()
    commands = dict(line.split(": ", 1) for line in lines)
    assert {"grid-few", "sparsert", "sparse-sparse", "speech", "fleet", "model-other"} <= commands.keys()
    for name, command in commands.items():
        assert f"--json {tmp_path}/out/{name}.json" in command
        assert "--target cuda" in command or "--targets cuda:0,cuda:1" in command
        assert Path(command.split()[1]).exists()
    assert "real_mobilenet_v1.onnx" in commands["sparsert"]
    ranks = {one.name: one.rank for one in bench_all.benchmarks(sorted(tmp_path.glob("*.onnx")), tmp_path, 1, 0.0)}
    assert ranks["model-other"] > ranks["model-mlp_s95_b1"] == ranks["grid-90"]
    assert "fleet" not in ranks  # of one GPU


def test_budget_tunes_layers_and_networks_into_logs_of_their_own(tmp_path: Path) -> None:
    jobs = {one.name: one.command for one in bench_all.benchmarks([Path("m.onnx")], tmp_path, 1, 3.0)}
    assert jobs["grid-90"][-6:-2] == ("--budget", "3", "--log-dir", str(tmp_path / "logs" / "grid-90"))
    assert jobs["model-m"][-6:-2] == ("--budget", "30s", "--log-dir", str(tmp_path / "logs" / "model-m"))


def test_tune_gives_each_model_its_share_and_a_log_of_its_own(tmp_path: Path, capsys) -> None:
    paths = sorted(models(tmp_path, "a", "b", "c").glob("*.onnx"))
    jobs = bench_all.tunes(paths, tmp_path / "out", 2, 250.0)
    assert all("100s" in one.command for one in jobs)  # two rounds on two GPUs, start-up aside
    assert len({one.command[one.command.index("--log-dir") + 1] for one in jobs}) == 3
    short = ["--tune", "--models", str(tmp_path), "--out", str(tmp_path / "out"), "--devices", "0", "--seconds", "60"]
    assert bench_all.main(short) == 2
    assert "--seconds 165" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--only", "nothing*"], ["--tune"], ["--models", "EMPTY"]])
def test_what_cannot_be_run_is_a_usage_error(options: list[str], tmp_path: Path, capsys) -> None:
    given = [str(tmp_path) if option == "EMPTY" else option for option in options]
    assert bench_all.main([*given, "--out", str(tmp_path / "out"), "--devices", "0"]) == 2
    assert "error: " in capsys.readouterr().err


def test_summary_names_what_is_not_ok(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    good = "(out / f'{name}.json').write_text(json.dumps({'rows': [{'speedup': 2.0}]}))"
    fake = [job(tmp_path, "good", good), job(tmp_path, "bad", "sys.exit(1)")]
    monkeypatch.setattr(bench_all, "benchmarks", lambda *_: fake)
    assert bench_all.main(["--out", str(tmp_path), "--devices", "7"]) == 1
    said = capsys.readouterr().out
    assert "1 rows, 2.00x best dense" in said
    assert said.splitlines()[-1] == "not ok: bad"
    assert (tmp_path / "summary.txt").read_text() == said


def test_the_document_names_every_benchmark() -> None:
    text = (Path(__file__).parents[2] / "docs" / "gpu.md").read_text()
    names = [one.name for one in bench_all.benchmarks([], Path("out"), 2, 0.0)]
    assert [name for name in names if f"`{name}`" not in text] == []
