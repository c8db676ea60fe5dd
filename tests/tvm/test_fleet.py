"""A fleet of one worker on this machine: results as of a local tune, whatever is killed meanwhile.

Takes a while: tracker, server and session each import TVM.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from sparsetvm.core.config import Config
from sparsetvm.core.layout import PLAIN
from sparsetvm.core.pattern import PatternSummary, pattern_digest
from sparsetvm.core.target import device_fingerprint, host_target
from sparsetvm.core.task import Task
from sparsetvm.core.workload import Epilogue, Workload
from sparsetvm.errors import EnvironmentProblem
from sparsetvm.measure.fleet import Fleet
from sparsetvm.measure.fleet_worker import Supervisor, WorkerOptions

pytest.importorskip("tornado", reason="needs the extra 'fleet'")
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def tracker() -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [sys.executable, "-m", "tvm.exec.rpc_tracker", "--host", "127.0.0.1", "--silent"]
    process = subprocess.Popen(
        [*command, "--port", str(port), "--port-end", str(port + 1)], stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
                break
            time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def worker(tracker: str) -> Iterator[Supervisor]:
    old = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(HERE)
    supervisor = Supervisor(WorkerOptions(tracker, "test", templates="fault_templates", run_timeout=60.0), print)
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    try:
        yield supervisor
    finally:
        supervisor.stop()
        thread.join(30)
        if old is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = old


def small_task() -> Task:
    weight = np.random.default_rng(0).standard_normal((12, 20)).astype(np.float32)
    pattern = PatternSummary("unstructured", (1, 1), 1.0, 1.0, 0, pattern_digest(weight))
    return Task("layer", Workload("matmul", 12, 20, 5, PLAIN, PLAIN, Epilogue(), pattern), weight, None)


def _left_after(seconds: float) -> list[psutil.Process]:
    """Measuring processes still there so long after the tune hung up: the server learns of that from its socket."""
    measuring = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "measure.worker" in " ".join(process.cmdline()):
                measuring.append(process)
    return psutil.wait_procs(measuring, timeout=seconds)[1]


def kill_server(worker: Supervisor) -> None:
    """SIGKILL the server, once there is one."""
    while (pid := worker.pid) is None:
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)


def config(kind: str, copy: int = 0) -> Config:
    return Config.of("test.faulty", kind=kind, copy=copy)


EXPECTED = {
    "good": "ok",
    "segfault": "crash",
    "build_invalid": "invalid",
    "build_crash": "crash",
    "wrong": "wrong_answer",
    "overrun": "wrong_answer",
}


@pytest.mark.usefixtures("worker")
def test_remote_candidates_are_judged_as_local_ones_and_survive_a_killed_worker(
    tracker: str, worker: Supervisor
) -> None:
    fleet = Fleet(tracker, "test", threads=1)
    task = small_task()
    with fleet.measurer(jobs=2, templates="fault_templates") as measurer:
        seen = []
        results = measurer.measure(task, list(map(config, EXPECTED)), seen.append)
        assert [result.status for result in results] == list(EXPECTED.values())
        assert len(seen) == len(results)
        assert results[0].device == device_fingerprint(host_target(1))
        assert fleet.target.mcpu == host_target(1).mcpu
        assert results[0].times_us
        assert results[0].build_seconds > 0

        # Kill the server with its session while it measures.
        threading.Timer(0.3, kill_server, [worker]).start()
        slow = measurer.measure(task, [config("slow", copy) for copy in range(4)])
        assert [result.status for result in slow] == ["ok"] * 4
        assert worker.restarts >= 1

        final = measurer.retime(task, [config("good"), config("segfault"), config("good", 1)], 3)
        assert [result.status for result in final] == ["ok", "crash", "ok"]
        assert len(final[0].times_us) == 3
    assert not _left_after(20.0)


@pytest.mark.usefixtures("worker")
def test_two_tasks_share_a_worker(tracker: str) -> None:
    tasks = [small_task(), small_task()]
    wanted = [[config("good"), config("segfault")], [config("good", 1), config("wrong")]]
    with Fleet(tracker, "test", threads=1).measurer(jobs=2, templates="fault_templates") as measurer:
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            found = list(pool.map(measurer.measure, tasks, wanted))
        assert measurer.lanes == 1
    assert [[result.status for result in results] for results in found] == [["ok", "crash"], ["ok", "wrong_answer"]]
    assert [[result.config for result in results] for results in found] == wanted


def test_key_without_workers_is_an_error_that_says_how_to_start_one(tracker: str) -> None:
    with pytest.raises(EnvironmentProblem, match="sparsetvm worker --tracker"):
        Fleet(tracker, "nobody", patience=1.0)
