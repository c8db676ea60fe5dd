"""A tracker and workers on this machine, for scripts that try a fleet."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

import psutil


def free_port() -> int:
    """Of a tracker, with room above it for the workers' ports."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return min(int(probe.getsockname()[1]), 60000)


class Field:
    """A tracker and its workers, each a process group of its own. Use `field`."""

    def __init__(self) -> None:
        self.port = free_port()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        ports = ["--port", str(self.port), "--port-end", str(self.port + 1)]
        self.start("tracker", ["-m", "tvm.exec.rpc_tracker", "--host", "127.0.0.1", *ports, "--silent"])
        for _ in range(600):  # it imports TVM first
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1.0):
                return
            time.sleep(0.2)
        raise SystemExit("the tracker does not start: is tornado installed?")

    @property
    def address(self) -> str:
        """host:port of the tracker."""
        return f"127.0.0.1:{self.port}"

    def start(self, name: str, arguments: Sequence[str], variables: dict[str, str] | None = None) -> None:
        """Start Python with these arguments, as a process whose name no other has: else nobody would end the other."""
        if name in self.processes:
            raise ValueError(f"there is a process '{name}' already")
        environment = {**os.environ, **(variables or {})}
        self.processes[name] = subprocess.Popen([sys.executable, *arguments], env=environment, start_new_session=True)

    def worker_port(self) -> int:
        """For the next worker; those of neighbours differ by an odd number."""
        return self.port + 100 + 11 * len(self.processes)

    def kill_a_process_of(self, name: str, rng: random.Random) -> bool:
        """SIGKILL the server of a worker, or the session in which it measures; the supervisor is left alone."""
        with contextlib.suppress(psutil.Error):
            servers = psutil.Process(self.processes[name].pid).children(recursive=True)
            if servers:
                rng.choice(servers).kill()
                return True
        return False

    def close(self) -> None:
        """End all of them."""
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@contextlib.contextmanager
def field() -> Iterator[Field]:
    """A tracker, gone with its workers at the end."""
    made = Field()
    try:
        yield made
    finally:
        made.close()
