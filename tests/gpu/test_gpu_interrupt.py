"""Ctrl-C while tuning on a GPU: what was measured is kept, and the same command goes on from there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from gpu_tools import needs_gpu
from models import mlp

from sparsetvm.errors import Interrupted
from sparsetvm.log import journal

pytestmark = needs_gpu
PROGRAM = [sys.executable, "-m", "sparsetvm"]


@pytest.fixture
def tune(tmp_path: Path) -> list[str]:
    """The command, as far as it is the same both times."""
    model = mlp((256, 384, 10), batch=64, sparsity=0.9).save(tmp_path / "m.onnx")
    return [*PROGRAM, "-v", "tune", str(model), "--target", "cuda", "--log-dir", str(tmp_path / "log")]


def environment() -> dict[str, str]:
    """Processes find the package where this one found it."""
    paths = os.pathsep.join(path for path in sys.path if path)
    return {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": paths}


def read(folder: Path) -> list[journal.Record]:
    (path,) = folder.glob("*.jsonl")
    return journal.read_records(path).records


def test_interrupted_tuning_goes_on_without_repeating_a_measurement(tune: list[str], tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*tune, "--effort", "max"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    assert process.stderr is not None
    seen, said = 0, []
    for line in process.stderr:
        said.append(line)
        seen += line.startswith("[trial]")
        if seen == 6:
            process.send_signal(signal.SIGINT)
            break
    _, rest = process.communicate(timeout=120)
    assert process.returncode == Interrupted.exit_code == 130, "".join(said) + rest
    assert "run the same command to go on" in rest
    assert "Traceback" not in rest
    before = read(tmp_path / "log")
    assert len(before) >= 6

    again = subprocess.run(
        [*tune, "--trials", "6", "--json", "-"], capture_output=True, text=True, timeout=250, env=environment(),
        check=False,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert 0 < json.loads(again.stdout)["trials_run"] <= 6
    records = read(tmp_path / "log")
    assert records[: len(before)] == before
    assert any(record.stage == "final" for record in records)
    searched = Counter((record.workload.id, record.config) for record in records if record.stage == "search")
    assert set(searched.values()) == {1}
    timed = [record for record in records if record.status == "ok"]
    assert all(record.other_us is not None and record.other_us > record.best_us / 2 for record in timed)
    known = [record.conditions for record in timed]
    assert all(one is not None and one.mhz and one.memory_mhz for one in known)
