"""What travels between a tune and its workers, addresses, warnings, and the supervisor of a server."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from sparsetvm.core.config import Config
from sparsetvm.core.layout import PLAIN
from sparsetvm.core.pattern import PatternSummary
from sparsetvm.core.target import Target
from sparsetvm.core.task import Task
from sparsetvm.core.workload import Epilogue, Workload
from sparsetvm.errors import EnvironmentProblem, UsageError
from sparsetvm.measure.fleet_link import Tracker
from sparsetvm.measure.fleet_protocol import RemoteLibrary, library_message, task_message, task_of, write_library
from sparsetvm.measure.fleet_worker import Supervisor, WorkerOptions, parse_tracker
from sparsetvm.measure.place import find_place

CONFIG = Config.of("x86.dense", mr=1)


def task(bias: bool = True) -> Task:
    rng = np.random.default_rng(0)
    pattern = PatternSummary("unstructured", (1, 1), 0.2, 1.5, 0, "d")
    weight = rng.standard_normal((3, 5)).astype(np.float32)
    workload = Workload("matmul", 3, 5, 2, PLAIN, PLAIN, Epilogue(), pattern)
    return Task("t", workload, weight, rng.standard_normal(3).astype(np.float32) if bias else None)


@pytest.mark.parametrize("bias", [True, False])
def test_task_travels_whole(bias: bool) -> None:
    sent = task(bias)
    arrived = task_of(task_message(sent, Target("cpu", "znver4", "avx512"), 5, 0))
    np.testing.assert_array_equal(arrived.weight, sent.weight)
    assert (arrived.bias is None) == (sent.bias is None)
    assert arrived.workload == sent.workload


def test_weights_of_another_size_are_refused() -> None:
    message = task_message(task(), Target("cpu", "znver4", "avx512"), 5, 0)
    with pytest.raises(ValueError, match=r"reshape|buffer"):
        task_of(type(message)(message.workload, message.target, message.weight[:-4], None, 5, 0))


def test_library_arrives_with_its_arrays_under_another_name(tmp_path: Path) -> None:
    for suffix in (".so", ".npz"):
        (tmp_path / f"candidate7{suffix}").write_bytes(suffix.encode())
    message = library_message(CONFIG, sorted(tmp_path.iterdir()), "candidate7", 0.5)
    there = tmp_path / "there"
    there.mkdir()
    assert write_library(message, there, "remote3") == there / "remote3.so"
    assert sorted(path.name for path in there.iterdir()) == ["remote3.npz", "remote3.so"]


@pytest.mark.parametrize("suffix", ["/../../x", "", ".so/x", "so", ".S O", "." + "x" * 40])
def test_library_writes_no_other_files(suffix: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a library with a file"):
        write_library(RemoteLibrary(CONFIG, {suffix: b""}, 0.0), tmp_path, "remote")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "host", "host:", ":9190", "host:x", "host:0", "host:70000"])
def test_impossible_trackers_are_usage_errors(text: str) -> None:
    with pytest.raises(UsageError, match="--tracker"):
        parse_tracker(text)


def test_tracker_addresses_are_parsed() -> None:
    assert parse_tracker("127.0.0.1:9190") == ("127.0.0.1", 9190)
    assert parse_tracker("[::1]:9190") == ("::1", 9190)


def test_tracker_that_does_not_answer_is_named_with_the_command_that_starts_one() -> None:
    with pytest.raises(EnvironmentProblem, match=r"rpc_tracker --host 127\.0\.0\.1 --port 1"):
        Tracker("127.0.0.1", 1, "key")


def test_tracker_and_key_belong_together() -> None:
    with pytest.raises(UsageError, match="--tracker and --key belong together"):
        find_place("cpu", 1, False, False, tracker="127.0.0.1:1")


def test_listening_beyond_this_machine_is_warned_of() -> None:
    assert WorkerOptions("t:1", "k").exposed() == ""
    assert "run any code" in WorkerOptions("t:1", "k", host="0.0.0.0").exposed()


# A server that notes its start and beats until it ends.
_SERVER = """
import os, sys, time
beat = int(sys.argv[sys.argv.index("--beat") + 1])
open({notes!r}, "a").write("started\\n")
for _ in range({beats}):
    os.write(beat, b".")
    time.sleep(0.05)
sys.exit({code})
"""


def supervised(folder: Path, beats: int, code: int = 1) -> tuple[Supervisor, list[str], Path]:
    notes, told = folder / "notes", []
    text = _SERVER.format(notes=str(notes), beats=beats, code=code)
    options = WorkerOptions("127.0.0.1:1", "k", command=(sys.executable, "-c", text))
    return Supervisor(options, told.append), told, notes


def starts(notes: Path) -> int:
    return len(notes.read_text().splitlines()) if notes.exists() else 0


def until(condition) -> None:  # type: ignore[no-untyped-def]
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_server_that_ends_is_started_again_until_the_supervisor_stops(tmp_path: Path) -> None:
    supervisor, told, notes = supervised(tmp_path, beats=1)
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    until(lambda: starts(notes) >= 2)
    supervisor.stop()
    thread.join(20)
    assert not thread.is_alive()
    assert supervisor.pid is None
    assert told[0] == "the server ended; starting it again"


def test_server_that_falls_silent_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsetvm.measure import fleet_worker

    monkeypatch.setattr(fleet_worker, "_SILENCE", 0.3)
    supervisor, told, notes = supervised(tmp_path, beats=1)
    hanging = _SERVER.format(notes=str(notes), beats=1, code=0).replace("sys.exit(0)", "time.sleep(600)")
    supervisor.options = WorkerOptions("127.0.0.1:1", "k", command=(sys.executable, "-c", hanging))
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    until(lambda: starts(notes) >= 2)
    supervisor.stop()
    thread.join(20)
    assert not thread.is_alive()
    assert "no sign of life" in told[0]
