"""The measuring side of worker processes: start the fork server, talk to workers under a watchdog, bury the dead."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

import msgspec
import numpy as np

from sparsetvm.core.target import Target
from sparsetvm.core.task import Task
from sparsetvm.core.thread_pool import SPIN_VARIABLE, SPINS
from sparsetvm.errors import EnvironmentProblem
from sparsetvm.measure import protocol
from sparsetvm.measure.protocol import (
    Reply,
    Request,
    Response,
    SetTask,
    receive_message,
    send_message,
    tells_of_memory,
)

_START_SECONDS = 120.0
_STOP_SECONDS = 5.0
_TAIL = 4096
_DRAINED = 32  # reads of 64 KiB
_FAULT = "MachineFault: "
_TRACE = ('File "', "at ", "[bt]")  # lines of a stack trace say less than the line before it


def write_task(task: Task, target: Target, folder: Path, seed: int, *, check: bool = True) -> SetTask:
    """Write the weights of a task into `folder`: what `ForkServer.open_task` takes."""
    weight, bias = folder / "weight.npy", folder / "bias.npy"
    np.save(weight, task.weight, allow_pickle=False)
    if task.bias is not None:
        np.save(bias, task.bias, allow_pickle=False)
    return SetTask(task.workload, target, str(weight), None if task.bias is None else str(bias), seed, check)


class WorkerTimedOut(Exception):
    """A worker did not answer within its limit."""


class WorkerDied(Exception):
    """A worker is gone. `signal_name` is "" when it exited by itself; `output` is the end of what it printed."""

    def __init__(self, signal_name: str, code: int, output: str) -> None:
        super().__init__(signal_name or f"exit code {code}")
        self.signal_name = signal_name
        self.code = code
        self.output = output

    @property
    def out_of_memory(self) -> bool:
        """True when the output says so, or somebody else (the kernel) sent SIGKILL."""
        return self.signal_name == "SIGKILL" or tells_of_memory(self.output)

    @property
    def machine_fault(self) -> str:
        """What the machine lacks all of a sudden (cuda_session.MachineFault), "" when the candidate is to blame."""
        lines = [line for line in self.output.splitlines() if line.startswith(_FAULT)]
        return lines[-1].removeprefix(_FAULT) if lines else ""

    def describe(self) -> str:
        """One line: the signal and the last words."""
        lines = [line.strip() for line in self.output.splitlines()]
        last = [line for line in lines if line and not line.startswith(_TRACE)]
        return f"worker died of {self}" + (f": {last[-1][:200]}" if last else "")


class _Server:
    """The measuring side of a process that forks others on request."""

    def __init__(self) -> None:
        self._control: socket.socket | None = None

    def reap(self, pid: int, grace: float) -> tuple[int, bool]:
        """Wait up to `grace` seconds for a fork, kill its process group, return (wait status, had to be killed)."""
        if self._control is None:
            return 0, True
        self._control.sendall(protocol.REAP + protocol.REAP_FORMAT.pack(pid, grace))
        status, killed = protocol.STATUS_FORMAT.unpack(self._answer(protocol.STATUS_FORMAT.size))
        return int(status), bool(killed)

    def _fork(self, message: bytes, descriptors: list[int]) -> int:
        """Ask for a fork that gets the descriptors; its process id."""
        if self._control is None:
            raise self._stopped()
        try:
            socket.send_fds(self._control, [message], descriptors)
        except OSError:
            raise self._stopped() from None
        return int(protocol.PID_FORMAT.unpack(self._answer(protocol.PID_FORMAT.size))[0])

    def _answer(self, size: int) -> bytes:
        try:
            answer = b"" if self._control is None else self._control.recv(size, socket.MSG_WAITALL)
        except OSError:
            answer = b""
        if len(answer) < size:
            raise self._stopped()
        return answer

    def _stopped(self) -> EnvironmentProblem:
        raise NotImplementedError


class ForkServer(_Server):
    """The first server, which has TVM imported. Not thread-safe; `close` leaves no process behind."""

    def __init__(self, target: Target, templates: str = "") -> None:
        super().__init__()
        self._target = target
        self._templates = templates
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False

    def start(self) -> None:
        """Start the server without waiting for it."""
        if self._process is not None:
            return
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "sparsetvm.measure.worker", "--control", str(theirs.fileno())]
        command += ["--target", msgspec.json.encode(self._target).decode()]
        if self._templates:
            command += ["--templates", self._templates]
        # The package last: when it runs from its source folder, the worker's own folder does not lead to it.
        paths = [os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
        paths.append(str(Path(protocol.__file__).parents[2]))
        environment = {
            **os.environ,
            "TVM_NUM_THREADS": str(self._target.threads),
            SPIN_VARIABLE: os.environ.get(SPIN_VARIABLE, SPINS),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(paths),
        }
        self._home = tempfile.TemporaryDirectory(prefix="sparsetvm-worker-")
        self._errors = Path(self._home.name, "errors.txt")
        with theirs, self._errors.open("wb") as errors:
            # cwd: "-m" puts it on the import path, and a folder with models is no place to import from.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                cwd=self._home.name,
                env=environment,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        self._control = ours

    def open_task(self, request: SetTask) -> TaskServer:
        """A server of workers for the task. Raises EnvironmentProblem when it cannot start."""
        self.start()
        if self._control is not None and not self._ready:
            self._control.settimeout(_START_SECONDS)
            self._answer(1)
            self._ready = True
        ours, theirs = socket.socketpair()
        with theirs:
            pid = self._fork(protocol.TASK, [theirs.fileno()])
        return TaskServer(self, pid, ours, request)

    def close(self) -> None:
        """Stop the server and all its workers."""
        process, self._process = self._process, None
        if self._control is not None:
            self._control.close()
            self._control = None
        if process is None:
            return
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._ready = False
        self._home.cleanup()

    def _stopped(self) -> EnvironmentProblem:
        text = self._errors.read_text(errors="replace").strip()
        last = text.splitlines()[-1] if text else "no message"
        return EnvironmentProblem(
            f"the process that measures candidates stopped: {last}",
            hint="run `sparsetvm doctor` to check TVM and the Python packages",
        )


class TaskServer(_Server):
    """A server that holds the inputs and the reference of one task and forks the workers that measure it."""

    def __init__(self, parent: ForkServer, pid: int, control: socket.socket, request: SetTask) -> None:
        super().__init__()
        self._parent = parent
        self._pid = pid
        self._control = control
        control.settimeout(_START_SECONDS)
        try:
            send_message(control, request)
            reply: Reply = receive_message(control, Reply)
        except (EOFError, OSError, ValueError):
            self.close()
            raise self._stopped() from None
        if reply.status != "ok":
            self.close()
            raise EnvironmentProblem(
                f"the reference of {request.workload.describe()} cannot be computed: {reply.message}",
                hint="report the model; if memory ran out, tune on a machine with more",
            )

    def spawn(self, *, memory_limit: int, pin: bool) -> WorkerProcess:
        """A fresh worker, ready for requests. Raises EnvironmentProblem when the server is gone."""
        ours, theirs = socket.socketpair()
        read_end, write_end = os.pipe()
        os.set_blocking(read_end, False)
        message = protocol.SPAWN + protocol.SPAWN_FORMAT.pack(memory_limit, pin)
        try:
            with theirs:
                pid = self._fork(message, [theirs.fileno(), write_end])
        except BaseException:
            ours.close()
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        return WorkerProcess(self, pid, ours, read_end)

    def close(self) -> None:
        """Stop the server and all its workers."""
        if self._control is not None:
            self._control.close()
            self._control = None
            with contextlib.suppress(EnvironmentProblem, OSError):  # the parent may be gone, and everything with it
                self._parent.reap(self._pid, _STOP_SECONDS)

    def _stopped(self) -> EnvironmentProblem:
        return self._parent._stopped()


class WorkerProcess:
    """One worker: a channel, the end of what it printed, and a watchdog on every answer."""

    def __init__(self, server: TaskServer, pid: int, channel: socket.socket, output: int) -> None:
        self.pid = pid
        self._server = server
        self._channel = channel
        self._output_fd = output
        self._output = b""
        self._open = True

    def fileno(self) -> int:
        return self._channel.fileno()

    @property
    def output(self) -> int:
        """Descriptor of what the worker prints."""
        return self._output_fd

    def send(self, request: Request) -> None:
        """Send a request. Raises WorkerDied."""
        try:
            send_message(self._channel, request)
        except OSError:
            raise self._death() from None

    def receive(self, seconds: float) -> Response:
        """The next answer. Raises WorkerTimedOut (the worker is killed first) or WorkerDied."""
        deadline = time.monotonic() + seconds
        talks = True
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                self.kill()
                raise WorkerTimedOut
            watched = [self.fileno(), self._output_fd] if talks else [self.fileno()]
            readable, _, _ = select.select(watched, [], [], left)
            if self._output_fd in readable:
                talks = self.drain()  # a worker that closed its output may still answer
            if self.fileno() in readable:
                return self.take(max(0.1, deadline - time.monotonic()))

    def take(self, seconds: float) -> Response:
        """Read the answer that is arriving. Raises WorkerDied, or WorkerTimedOut when it stops half-way."""
        self._channel.settimeout(seconds)
        try:
            response: Response = receive_message(self._channel, Response)  # type: ignore[arg-type]
            return response
        except TimeoutError:
            self.kill()
            raise WorkerTimedOut from None
        except (EOFError, OSError, ValueError):
            raise self._death() from None
        finally:
            if self._open:
                self._channel.settimeout(None)

    def drain(self) -> bool:
        """Read what the worker printed, keep the end of it; False when its output is closed."""
        with contextlib.suppress(BlockingIOError):
            for _ in range(_DRAINED):  # who prints faster than this reads must not keep the watchdog from its clock
                text = os.read(self._output_fd, 1 << 16)
                if not text:
                    return False
                self._output = (self._output + text)[-_TAIL:]
        return True

    def forget(self) -> None:
        """Close the descriptors only: the server is about to be closed and buries its workers itself."""
        if self._open:
            self._open = False
            self._channel.close()
            os.close(self._output_fd)

    def kill(self) -> None:
        """Kill the worker's process group and bury it."""
        if self._open:
            self._bury(0.0)

    def _death(self) -> WorkerDied:
        if not self._open:
            return WorkerDied("", 1, "it was stopped")
        status, killed = self._bury(0.3)
        ended_by = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) and not killed else ""
        code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 1
        return WorkerDied(ended_by, code, self._output.decode(errors="replace"))

    def _bury(self, grace: float) -> tuple[int, bool]:
        self._open = False
        self._channel.close()
        try:
            result = self._server.reap(self.pid, grace)
            self.drain()
        finally:
            os.close(self._output_fd)
        return result

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
