"""`sparsetvm worker`: supervises the server of one device, so that whatever happens to it costs a restart.

TVM's server ends when one of its sessions dies, and stays in the tracker's queue while it hangs. The supervisor starts
it in a process group of its own, expects a sign of life every second, and starts it again when it ends or falls silent:
at once the first time, then after growing pauses while it keeps failing.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from sparsetvm.errors import UsageError
from sparsetvm.measure import protocol

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_SILENCE = 15.0  # seconds; importing TVM on a busy machine takes some
_START_SILENCE = 120.0
_PAUSES = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)
_STEADY = 30.0  # a server that lived so long starts again at once
_STOP_SECONDS = 5.0


@dataclass(frozen=True)
class WorkerOptions:
    """tracker: host:port. host: what the server listens on; advertise: the address that the tracker hands out, when it
    is another. run_timeout: seconds for a candidate; memory: bytes for it, None for half of the machine's. templates,
    command: a module with further templates, and another server, for tests.
    """

    tracker: str
    key: str
    target: str = "cpu"
    host: str = "127.0.0.1"
    port: int = 9091
    advertise: str = ""
    run_timeout: float = 10.0
    memory: int | None = None
    templates: str = ""
    command: tuple[str, ...] = (sys.executable, "-m", "sparsetvm.measure.fleet_server")

    def exposed(self) -> str:
        """A warning when more than this machine can reach the server, "" otherwise."""
        if self.host in LOOPBACK:
            return ""
        return (
            f"the server listens on {self.host}: whoever can reach its port may run any code on this machine as you. "
            "Use it in a network that you trust, or listen on 127.0.0.1 and forward the ports with SSH (docs/fleet.md)"
        )


def parse_tracker(text: str) -> tuple[str, int]:
    """ "host:port" -> (host, port). Raises UsageError."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise UsageError(f"--tracker {text}: no address", hint="write HOST:PORT, e.g. 127.0.0.1:9190")
    return host.strip("[]"), int(port)


@dataclass
class Supervisor:
    """Keeps one server alive. tell: gets one line per event. restarts: how often the server had to be started again."""

    options: WorkerOptions
    tell: Callable[[str], None]
    restarts: int = 0
    _server: subprocess.Popen[bytes] | None = None
    _beat: int = -1
    _stopped: bool = field(default=False)

    def run(self) -> None:
        """Supervise until `stop` is called or Ctrl-C; leaves no process behind."""
        failures = 0
        try:
            while not self._stopped:
                began = time.monotonic()
                self._start()
                reason = self._watch()
                self._kill()
                if self._stopped:
                    return
                self.restarts += 1
                failures = 0 if time.monotonic() - began > _STEADY else failures + 1
                pause = _PAUSES[min(failures, len(_PAUSES) - 1)] if failures > 1 else 0.0
                self.tell(f"the server {reason}; starting it again" + (f" in {pause:g} s" if pause else ""))
                self._sleep(pause)
        finally:
            self._kill()

    def stop(self, *_: object) -> None:
        """End `run` soon; may be called by a signal handler."""
        self._stopped = True

    @property
    def pid(self) -> int | None:
        """Process id of the server."""
        return self._server.pid if self._server is not None else None

    def _start(self) -> None:
        options = self.options
        self._beat, theirs = os.pipe()
        command = [
            *options.command, "--tracker", options.tracker, "--key", options.key,
            "--host", options.host, "--port", str(options.port), "--target", options.target, "--beat", str(theirs),
            "--run-timeout", str(options.run_timeout), "--advertise", options.advertise,
            "--templates", options.templates,
        ]  # fmt: skip
        if options.memory is not None:
            command += ["--memory", str(options.memory)]
        paths = [os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
        paths.append(str(Path(protocol.__file__).parents[2]))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        try:
            self._server = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, env=environment, pass_fds=(theirs,), start_new_session=True
            )
        finally:
            os.close(theirs)

    def _watch(self) -> str:
        """Wait for the end of the server, or of its signs of life; what happened."""
        limit, last = _START_SILENCE, time.monotonic()
        while not self._stopped:
            readable, _, _ = select.select([self._beat], [], [], 0.5)
            if readable:
                if not os.read(self._beat, 4096):
                    return "ended"
                limit, last = _SILENCE, time.monotonic()
            elif time.monotonic() - last > limit:
                return f"gave no sign of life for {limit:g} s"
            if self._server is not None and self._server.poll() is not None:
                return "ended"
        return "was stopped"

    def _kill(self) -> None:
        """End the server and all that it started."""
        server, self._server = self._server, None
        if server is not None:
            for step in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(server.pid, step)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    server.wait(_STOP_SECONDS)
                    if step == signal.SIGKILL:
                        break
        if self._beat >= 0:
            os.close(self._beat)
            self._beat = -1

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self._stopped and time.monotonic() < end:
            time.sleep(0.1)
